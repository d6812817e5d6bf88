"""demask: teach a language model new documents by masked fine-tuning."""
