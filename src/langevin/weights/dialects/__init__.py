"""How adapters are spelt in files: `words` takes a name apart, `lora` reads and writes files, the others are dialects or kinds."""
