"""Between the frontend's objects (Module, Tensor, autograd, Optimizer) and executables.

- the entry: ``compile``; what it returns: ``module`` and, for training steps, ``step``
- one compilation bound to a model: ``variant``, found by ``call`` and ``fingerprint``; calls like
  the last one: ``shortcut``, ``step_shortcut``; under autograd: ``gradients``
- steps: ``step_program``, ``step_programs``, ``step_variants``, ``step_settings``; their halves:
  ``step_halves``, ``gradient_buffers``; ``evaluation``, and ``eager_step`` without compiled code
- looking into them: ``inspection``, ``compile_report``, ``memory_use``, ``profiler``, ``profile``
- ``onnx`` and ``interrupts``
"""
