//! Files: safetensors, GGUF; the only place that maps a file into memory.
