"""Where and how to compute: devices, processes, files, memory."""
