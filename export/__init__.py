"""Traced graphs in the form that other runtimes read: ONNX models, PyTorch modules.

Both converters are a table from IR operators to the other side's; both read the traced graph, the
one before any pass, so that the other runtime sees the model as the user wrote it.
"""
