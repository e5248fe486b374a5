"""A traced graph as an ONNX model: ``model.build``; the rules are in the other files.

Importing these needs the package onnx; ``netwright.onnx`` is the public side.
"""
