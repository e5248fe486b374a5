"""Depthwise convolutions (placeholder until written)."""

def depthwise_kernel(found, spec, inputs, target):
    return None
def depthwise_grad_weight_kernel(spec, target):
    return None
