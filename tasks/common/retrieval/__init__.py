"""Retrieval: the passages of a corpus that answer a question, by BM25 or by the embeddings of an encoder."""
