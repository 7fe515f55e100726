"""Direct rules over stages on several processes: errors go straight to every stage, nothing else comes back."""

from bpfree.pipeline.simulate import Outcome as Outcome
from bpfree.pipeline.simulate import StageTimes as StageTimes
from bpfree.pipeline.simulate import Transfers as Transfers
from bpfree.pipeline.simulate import simulate as simulate
from bpfree.pipeline.simulate import table as table
