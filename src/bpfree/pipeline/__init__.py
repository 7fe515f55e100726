"""Direct rules over stages on several processes: errors go straight to every stage, nothing else comes back."""

from bpfree.pipeline.checkpoint import load_checkpoint as load_checkpoint
from bpfree.pipeline.checkpoint import save_checkpoint as save_checkpoint
from bpfree.pipeline.measure import measure_stage as measure_stage
from bpfree.pipeline.schedule import DirectSchedule as DirectSchedule
from bpfree.pipeline.schedules import ScheduleAsynchronous as ScheduleAsynchronous
from bpfree.pipeline.schedules import ScheduleSynchronous as ScheduleSynchronous
from bpfree.pipeline.simulate import Outcome as Outcome
from bpfree.pipeline.simulate import StageTimes as StageTimes
from bpfree.pipeline.simulate import Transfers as Transfers
from bpfree.pipeline.simulate import simulate as simulate
from bpfree.pipeline.simulate import table as table
from bpfree.pipeline.stage import StageAttachment as StageAttachment
from bpfree.pipeline.stage import attach_stage as attach_stage
from bpfree.pipeline.watch import watched_ranks as watched_ranks
