"""The lab: data generators, training, export and evaluation of Spark Nano.

This package may import torch and transformers; nothing outside it may. The generators
(``lab.tasks``)
are pure Python and need neither, so an evaluation on the product's own engine runs without torch.
"""
