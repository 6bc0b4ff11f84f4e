"""Safe reading of other people's files.

header     the header of a safetensors file
entry      one tensor in a file
tensors    entries of a file or of its shards, by name
mapping    tensors that stay in the mapping of their file
terms      what a caller allows and chooses, and notes of what was done
impostors  what a file is instead of safetensors
files      folders and shards
hub        repositories in the Hugging Face cache
"""
