"""`bigmodel train`: a SequenceClassifier on real handwritten digits."""
