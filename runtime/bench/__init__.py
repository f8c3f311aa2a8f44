"""What this machine reaches in one layer and in a served model, beside what its parts allow."""
