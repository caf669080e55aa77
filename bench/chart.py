def svg(run): return "<svg/>"
