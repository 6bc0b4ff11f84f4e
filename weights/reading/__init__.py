"""Safe reading of other people's files.

header   the header of a safetensors file
entry    one tensor in a file
files    folders, shards and the Hugging Face cache
"""
