"""A traced graph as a PyTorch module: ``module.build``; what its operators are: ``functions``.

Importing these needs the package torch.
"""
