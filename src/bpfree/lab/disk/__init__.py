"""Files: whole or not at all, sealed by checksums, read within bounds, and temporary ones that are swept.

``files`` writes and reads them, ``checksums`` seals them, ``bounded`` and ``yaml_file`` read what others wrote, and
``leftovers`` makes temporary files and removes what killed processes left of them.
"""
