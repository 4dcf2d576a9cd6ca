"""What a job is and what it leaves behind, as files that the orchestrator and the job share. No torch here."""
