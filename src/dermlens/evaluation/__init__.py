"""How far a model can be trusted: metrics, intervals from a bootstrap over lesions, and the fits of
calibration.

`metrics` holds pure functions for one number; `scores.score` gives the whole of `metrics.json`;
`bootstrap` holds the resampling over lesions and the paired comparison of two models; `calibration` fits what
`dermlens.bundle.decision` applies.
"""
