"""Where work runs: executors, the memory plan, events and their listeners.

This is the only room that knows Ray and Dask's `distributed`; both are imported inside functions, so that a
run under `serial` never loads them.
"""
