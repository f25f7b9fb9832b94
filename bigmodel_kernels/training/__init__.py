"""`bigmodel train`: a SequenceClassifier on real handwritten digits, or a byte-level CausalLM on real text."""
