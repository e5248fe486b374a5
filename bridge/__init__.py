"""Between the frontend's objects (Module, Tensor, autograd, Optimizer) and executables."""
