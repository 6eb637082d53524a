"""How near one set of pictures is to another: FID and its relatives, as ADM's evaluator (arXiv 2105.05233) defines them."""
