"""Jobs as files that Dagster and the job share: their descriptions, results and transport. No torch here."""
