"""From the lab to the device and to others: GGUF and Hugging Face exports."""
