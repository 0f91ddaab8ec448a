"""Names that older code imports from here; they live in the modules below now."""

from transformer.console import format_seconds, log_to, run, set_up_logging
from transformer.files import LOCKS, append_to, lock_folder
from transformer.flags import ROOT, at_root
from transformer.outputs import fingerprint, read_record, read_results, write_results

__all__ = ["LOCKS", "ROOT", "append_to", "at_root", "fingerprint", "format_seconds", "lock_folder", "log_to"]
__all__ += ["read_record", "read_results", "run", "set_up_logging", "write_results"]
