"""Checkpoints that others quantized: GPTQ, AWQ, FP8, MXFP4, compressed-tensors.

``config.py`` reads what the model's config says and picks a reader; ``gptq.py``, ``floating.py``
and ``compressed.py`` know the layouts; ``linear.py`` is what they have in common: rows of a matrix
on demand, and packing to the bit where one of our formats can hold it so. ``source.py`` shows the
checkpoint to packing as if it held plain matrices.
"""
