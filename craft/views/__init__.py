"""What there is to see of a run: first the data of a view, then a renderer of it.

loss_curve.py   bits per unit in training and validation, from the metrics of a run
png.py          views as pictures, by matplotlib
"""
