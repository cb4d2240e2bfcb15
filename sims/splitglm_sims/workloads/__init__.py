"""What users ask of a simulated device: conversations, edits and summaries, and how drafts fare in each."""
