"""Side-by-side measurements against diffusers: `make bench`, or `python -m benchmarks --only import scheduler`.

Both libraries load the same weights; outputs are compared before anything is timed; every measurement runs in a fresh
process, in the order A B B A, so that drift of the machine falls on both alike. Networks and pictures are measured at
three levels: defaults, the best lossless settings of each library (`inference.LEVELS`), and what is lossy.
"""
