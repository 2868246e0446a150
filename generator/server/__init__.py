"""Running a model repository: the tritonserver that comes from pip, the stock container, and what their logs mean."""
