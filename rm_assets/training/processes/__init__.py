"""The processes of a training job: started, supervised and stopped. No torch here."""
