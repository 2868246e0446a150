"""The programs that are measured, each in a process of its own.

`loop.py` is started by path, `python loop.py torch`, and loads `torch_runner.py` beside it. The interpreter need not
have this project installed: these two files import the standard library, numpy, torch and torchvision only.
"""
