"""Training in two stages: the encoders run once and what they give is kept in files, from which training goes on.

What is kept of a sample is what its plan is made of: layouts, rules and options as JSON, tokens as tensors. Then no
plugin has to be asked again, and none can be forgotten. The one thing of a plan that is a function is the delta of a
residual. A plan with residuals therefore keeps its request too, pictures included and without loss, and every output
of the text encoder and the VAE; the second stage has its plugin make the residuals anew from these. So what a plugin
computes on the way with a model of its own, which may be the one in training, is computed in training.
"""
