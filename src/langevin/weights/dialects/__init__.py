"""How adapters are spelt in files: `words` takes a name apart, `lora` reads, `writing` writes; the others are data."""
