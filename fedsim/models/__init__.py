"""Networks, tokenizers, adapters and the warm start."""
