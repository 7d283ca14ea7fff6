"""The measurements behind ``mimo-rt bench``: what they run, what they record, how they compare.

Every record says how many bytes and multiply-adds its step needs, and the bound that follows from
the read bandwidth and the vector peak measured in the same run. GB = 1e9 bytes.
"""
