"""Sources → records → chat rendering and loss masks → tokens on disk → packed rows → batches."""
