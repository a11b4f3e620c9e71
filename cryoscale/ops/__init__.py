"""Pure kernels, arrays in and arrays out: filters, peaks, patches, statistics, blending, components.

Nothing here knows storage, stages or engines. Import the module that is needed; this package re-exports
nothing, so that importing it costs nothing.
"""
