"""What a run leaves behind, written so that a crash or a full disk leaves nothing half-written.

``run_dir`` says what lies where, ``run_lock`` that one process writes there, ``rollout_files`` and
``status_file`` are its larger files, ``checkpoint`` is what a resume starts from. Below them:
``jsonl`` (lines), ``checked_files`` (checksums), ``new_folder`` (all or nothing), ``provenance``
(versions, commit, machine).
"""
