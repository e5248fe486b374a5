"""A planned graph -> ``Program``: which kernels run, as LLVM IR. docs/kernels.md explains them.

What is in the files, from the bottom up:

- text of LLVM IR: ``text``, ``sizes``; vector code: ``vector_values``, ``emitter``,
  ``vector_math``, ``vector_tables``, ``philox``
- the machine and LLVM: ``target``, ``llvm``, ``object_code``, ``partition``
- any kernel: ``kernel``, ``writer``, ``columns``, and ``select``, which knows all that follow
- loops over elements: ``loops``, ``iteration``, ``strided_loop``, ``body``; their kernels:
  ``elementwise``, ``movement``, ``interleave``, ``transpose``, ``indexing``
- reductions and rows: ``reduction``, ``accumulators``, ``softmax``, ``cross_entropy``,
  ``normalization``, ``layer_norm``, ``batch_norm``, ``batch_norm_parts``
- pooling: ``pooling``, ``pool_windows``, ``pool_places``
- the micro-kernel: ``tile``, ``brgemm``, ``packing``; what becomes of its tiles: ``contraction``,
  ``epilogue``, ``window_pool``, ``deferred_update``
- matrix products: ``matmul``, ``gemm``, ``gemm_blocking``, ``gemm_operands``, ``gemm_work``,
  ``few_rows``, ``few_rows_unpacked``, ``linear_transposed``, ``updating_gemm``
- convolutions: ``convolution``, ``conv_blocking``, ``image``, ``depthwise``, ``winograd``,
  ``winograd_transforms``
- gradients of their weights: ``conv_grad_weight``, ``grad_weight_writer``, ``grad_weight_units``,
  ``weight_rows``, ``conv_grad_weight_parts``, ``depthwise_grad_weight``, ``winograd_grad_weight``
- attention: ``attention``, ``attention_heads``, ``attention_scores``, ``attention_grad``
- the program around the kernels: ``program``, ``timed_program``; how threads share its work:
  ``sharing``, ``chunks``, ``spmd``, ``waiting``
"""
