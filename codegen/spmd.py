"""How the threads of one program share its work, in LLVM IR.

A program runs as SPMD (single program, multiple data): every thread of a team calls the same entry
``void @entry(ptr args, i64 N, i64 tid, i64 nthreads, ptr ticket)``. Each kernel is a *round*: its
tasks are cut into chunks, and a thread runs the chunks that it claims. Thread 0 is the caller; it
returns when every chunk is done, and waits for nobody who holds no chunk. The others help: one that
wakes up late, or loses its CPU between two chunks, finds everything claimed and runs out of the
entry, even if that is long after the caller has gone on to other jobs. A ticket is a thread's own
note of where it is in a job; alone (one thread) it is null and nothing is claimed.

**Rounds are numbered by the chunks before them**, counted since the team exists, so that numbers
only grow: ``done``, the one counter of finished chunks, tells with the same numbers which rounds
are over. To wait for all work so far is to wait until ``done`` reaches the number of the next
round: nobody has to arrive. That is exact, because no chunk of a round behind a wait can be
claimed, much less done, before the wait is over for somebody.

**Claiming.** Chunks (``chunks.py``) belong to threads in the order of the tasks, equally many to
each, so that undisturbed the same thread works on the same rows in kernel after kernel. For each
thread there is a word on a cache line of its own::

    round << 8 | taken from the front << 4 | taken from the back

A thread claims from the front of its own chunks, and when these are gone from the back of the
others', by compare-exchange. A word with an older round is an untouched one: nothing is reset
between rounds. A thread leaves a round only when it has seen each chunk of it claimed, so whoever
is in a round knows that all earlier ones are claimed, and overwriting an older word loses nothing.
Who is late finds a newer word, or a changed one at the compare-exchange, and leaves the round.

A kernel that is not worth sharing has one chunk: thread 0's if others may have to wait for the
result, anybody's if there is other work to go on with.

**A loaded machine.** A thread may lose its CPU to another process while it holds a chunk, and then
the caller has to wait. That is why a helper that has worked for a while offers its CPU to others
itself, before it claims the next chunk (sched_yield(2), which costs nothing where nobody wants it):
the system takes a CPU from a thread that has used up its time, seldom from one that just got it.

Where that does not help, a wait that is much longer than what the caller has worked since its last
one is held against the thread that ended it: once such a thread costs more time than it saves, that
is, makes others wait for longer than it has been taking part, it is suspended, for longer each time
that this happens again. A suspended thread claims nothing and leaves jobs at once, which every
thread may do at any time.

**Orderings.** A word only ever grows, and a compare-exchange acts on its latest value: claims need
no ordering with other memory to be exclusive, and *acquire* merely keeps the work of a chunk behind
its claim. What a chunk reads was ordered by the wait before its round: ``done`` is advanced by
read-modify-writes with *release* or stronger, which form one release sequence, and read with
*acquire* (``nw_wait``). For the same reason the caller sees all results, and who changes the
argument table after that cannot disturb a thread that holds a chunk.
"""

from __future__ import annotations

from .chunks import CHUNKS_IR, MOST_CHUNKS
from .waiting import host_triple, system_of, threads_supported, wait_ir

# A team: zeroed memory, 64-byte aligned. i64 done at 0, i64 awaited at 8, i64 the thread that ended
# a round last at 16; settings on the next line; then a line for each thread: its word, until when
# it is suspended (0: it is not), since when it takes part, how many times longer than it made
# others wait it was suspended last.
_LAST, TEAM_SPIN, TEAM_PATIENCE, TEAM_TURN, TEAM_LINES = 16, 64, 72, 80, 128
SUSPENDED, _SINCE, _FACTOR = 8, 16, 24
"""Offsets. Settings are in ticks of the cycle counter: how long to spin before sleeping, how much
longer than it worked thread 0 may wait before this is held against somebody, and for how long a
thread works before it offers its CPU to others."""

LONGEST_WAIT, LONGEST_SUSPENSION = 256, 16
"""A wait counts as at most LONGEST_WAIT times the patience, and is followed by a suspension of at
most LONGEST_SUSPENSION times as long."""

# A ticket: i64 each.
_FIELDS = (
    "team", "tid", "nthreads", "round", "end", "per", "even", "ranges", "quotient", "rest",
    "asked", "since", "left", "turn",
)  # fmt: skip
TICKET_WORDS = len(_FIELDS)
TICKET_LEFT, TICKET_TURN = (8 * _FIELDS.index(name) for name in ("left", "turn"))
"""Offsets of i64: whether the thread left the job early because it is suspended, and since when it
has its CPU, as far as it knows; this one is kept from job to job."""

ENTRY_PARAMS = (
    ("ptr", "args"), ("i64", "N"), ("i64", "tid"), ("i64", "nthreads"), ("ptr", "ticket"),
)  # fmt: skip
"""Parameters of an entry: (type, name without %)."""


def team_bytes(threads: int) -> int:
    """Size of a team's memory for at most ``threads`` threads."""
    return TEAM_LINES + 64 * threads


def declarations(triple: str) -> frozenset[str]:
    """The ``declare`` lines that `wait_ir` and `sharing_ir` need."""
    if not threads_supported(triple):
        return frozenset()
    return frozenset(
        {
            "declare i64 @syscall(i64, ...)",
            "declare i64 @llvm.readcyclecounter()",
            "declare i64 @llvm.umin.i64(i64, i64)",
            system_of(triple).declaration,
        }
    )


def sharing_ir(triple: str) -> str:
    """Definitions of what an entry calls, and of what these call.

    ``void @nw_round(ptr ticket, i64 tasks, i64 cuts, i64 single)`` begins a round: chunks for each
    thread, cut as ``chunks.py`` says, or, if ``cuts`` is 0, one chunk in all, which is thread
    0's if ``single`` is 0 and anybody's if it is 1. ``{i64, i64} @nw_claim(ptr ticket)`` gives the
    tasks [begin, end) of a chunk to run, or a negative begin if none is left; ``void
    @nw_finish(ptr ticket)`` follows each chunk. ``void @nw_arrive(ptr ticket)`` waits for all
    rounds so far. ``void @nw_leave(ptr ticket)`` ends an entry. ``void @nw_stop(ptr ticket, i64
    rounds)`` comes before leaving early: it gives up the rest, at most so many rounds, and may be
    called after `nw_arrive` only. The last three do nothing without a ticket.

    Where threads are not supported, there is never a ticket.
    """
    if not threads_supported(triple):
        return _ALONE_IR
    return wait_ir(triple) + _SHARING_IR.replace("YIELD", str(system_of(triple).sched_yield))


def ticket_ir() -> str:
    """Definition of ``void @nw_ticket(ptr ticket, ptr team, i64 tid, i64 nthreads, i64 first)``,
    which fills a ticket in for a job that begins with round ``first``."""
    return _TICKET_IR


_ALONE_IR = """\
define internal void @nw_round(ptr %ticket, i64 %tasks, i64 %cuts, i64 %single) nounwind {
  ret void
}

define internal {i64, i64} @nw_claim(ptr %ticket) nounwind {
  ret {i64, i64} {i64 -1, i64 -1}
}

define internal void @nw_finish(ptr %ticket) nounwind {
  ret void
}

define internal void @nw_arrive(ptr %ticket) nounwind {
  ret void
}

define internal void @nw_leave(ptr %ticket) nounwind {
  ret void
}

define internal void @nw_stop(ptr %ticket, i64 %rounds) nounwind {
  ret void
}
"""


def _at(*names: str) -> str:
    """Addresses of fields of the ticket, as ``%name.at``."""
    return "".join(
        f"  %{name}.at = getelementptr i8, ptr %ticket, i64 {8 * _FIELDS.index(name)}\n"
        for name in names
    )


def _get(*names: str) -> str:
    """Loads fields of the ticket, as ``%name``."""
    return _at(*names) + "".join(
        f"  %{name} = load {'ptr' if name == 'team' else 'i64'}, ptr %{name}.at, align 8\n"
        for name in names
    )


_TICKET_IR = f"""\
define internal void @nw_ticket(
    ptr %ticket, ptr %team, i64 %tid, i64 %nthreads, i64 %first) nounwind {{
{_at("team", "tid", "nthreads", "round", "end", "since", "left")}\
  %now = call i64 @llvm.readcyclecounter()
  store ptr %team, ptr %team.at, align 8
  store i64 %tid, ptr %tid.at, align 8
  store i64 %nthreads, ptr %nthreads.at, align 8
  store i64 %first, ptr %round.at, align 8
  store i64 %first, ptr %end.at, align 8
  store i64 %now, ptr %since.at, align 8
  store i64 0, ptr %left.at, align 8
  ret void
}}
"""

_ROUND_IR = f"""
define internal void @nw_round(ptr %ticket, i64 %tasks, i64 %cuts, i64 %single) nounwind {{
{_get("nthreads", "end")}{_at("round", "per", "even", "ranges", "quotient", "rest", "asked")}\
  %cut = call {{i64, i64}} @nw_cut(i64 %tasks, i64 %nthreads, i64 %cuts)
  %cut.per = extractvalue {{i64, i64}} %cut, 0
  %cut.even = extractvalue {{i64, i64}} %cut, 1
  %no.cut = icmp eq i64 %cuts, 0
  %no.need = icmp ule i64 %tasks, 1
  %one = or i1 %no.cut, %no.need
  %per = select i1 %one, i64 1, i64 %cut.per
  %even = select i1 %one, i64 1, i64 %cut.even
  %ranges = select i1 %one, i64 %single, i64 %nthreads
  %parts = select i1 %one, i64 1, i64 %nthreads
  %chunks = mul i64 %per, %parts
  %new.end = add i64 %end, %chunks
  %quotient = udiv i64 %tasks, %parts
  %rest = urem i64 %tasks, %parts
  store i64 %end, ptr %round.at, align 8
  store i64 %new.end, ptr %end.at, align 8
  store i64 %per, ptr %per.at, align 8
  store i64 %even, ptr %even.at, align 8
  store i64 %ranges, ptr %ranges.at, align 8
  store i64 %quotient, ptr %quotient.at, align 8
  store i64 %rest, ptr %rest.at, align 8
  store i64 0, ptr %asked.at, align 8
  ret void
}}
"""

# ``ranges`` is how many threads have chunks, 0 if thread 0 need not claim its one; ``asked`` counts
# those, from the own one on, whose chunks are known to be gone.
_CLAIM_IR = f"""
define internal {{i64, i64}} @nw_claim(ptr %ticket) nounwind {{
entry:
{_get("team", "tid", "nthreads", "round", "per", "ranges", "asked", "left", "turn")}\
  %lines = getelementptr i8, ptr %team, i64 {TEAM_LINES}
  %base = shl i64 %round, 8
  %next.round = add i64 %base, 256
  %caller = icmp eq i64 %tid, 0
  %without = icmp eq i64 %ranges, 0
  br i1 %caller, label %whose, label %helper

helper:
  %is.left = icmp ne i64 %left, 0
  %nothing = or i1 %is.left, %without
  br i1 %nothing, label %none, label %suspension
suspension:
  %now = call i64 @llvm.readcyclecounter()
  %tid.line = shl i64 %tid, 6
  %line = getelementptr i8, ptr %lines, i64 %tid.line
  %until.at = getelementptr i8, ptr %line, i64 {SUSPENDED}
  %until = load atomic i64, ptr %until.at monotonic, align 8
  %free = icmp eq i64 %until, 0
  br i1 %free, label %turns, label %suspended
suspended:
  %remaining = sub i64 %until, %now
  %still = icmp sgt i64 %remaining, 0
  br i1 %still, label %leave, label %resume
leave:
  store i64 1, ptr %left.at, align 8
  br label %none
resume:
  store atomic i64 0, ptr %until.at monotonic, align 8
  br label %turns
turns:
  %limit.at = getelementptr i8, ptr %team, i64 {TEAM_TURN}
  %limit = load i64, ptr %limit.at, align 8
  %so.far = sub i64 %now, %turn
  %long = icmp ugt i64 %so.far, %limit
  br i1 %long, label %yield, label %range
yield:
  %yielded = call i64 (i64, ...) @syscall(i64 YIELD)
  %fresh = call i64 @llvm.readcyclecounter()
  store i64 %fresh, ptr %turn.at, align 8
  br label %range

whose:
  br i1 %without, label %own.one, label %range
own.one:
  %taken = icmp ne i64 %asked, 0
  br i1 %taken, label %none, label %got

range:
  %k = phi i64 [%asked, %turns], [%asked, %yield], [%asked, %whose], [%k.next, %gone]
  %all = icmp uge i64 %k, %ranges
  br i1 %all, label %none, label %visit
visit:
  %single = icmp eq i64 %ranges, 1
  %ahead = add i64 %tid, %k
  %wraps = icmp uge i64 %ahead, %nthreads
  %wrapped = sub i64 %ahead, %nthreads
  %around = select i1 %wraps, i64 %wrapped, i64 %ahead
  %owner = select i1 %single, i64 0, i64 %around
  %own = icmp eq i64 %k, 0
  %step = select i1 %own, i64 16, i64 1
  %at = shl i64 %owner, 6
  %word = getelementptr i8, ptr %lines, i64 %at
  %first = load atomic i64, ptr %word monotonic, align 8
  br label %try
try:
  %seen = phi i64 [%first, %visit], [%changed, %claim]
  %over = icmp uge i64 %seen, %next.round
  br i1 %over, label %none, label %count
count:
  %older = icmp ult i64 %seen, %base
  %state = select i1 %older, i64 %base, i64 %seen
  %back = and i64 %state, 15
  %high = lshr i64 %state, 4
  %front = and i64 %high, 15
  %both = add i64 %front, %back
  %some = icmp ult i64 %both, %per
  br i1 %some, label %claim, label %gone
claim:
  %more = add i64 %state, %step
  %claiming = cmpxchg ptr %word, i64 %seen, i64 %more acquire monotonic, align 8
  %changed = extractvalue {{i64, i1}} %claiming, 0
  %mine = extractvalue {{i64, i1}} %claiming, 1
  br i1 %mine, label %chosen, label %try
gone:
  %k.next = add i64 %k, 1
  br label %range
chosen:
  %farthest = sub i64 %per, 1
  %last = sub i64 %farthest, %back
  %index = select i1 %own, i64 %front, i64 %last
  br label %got

got:
  %whose.part = phi i64 [0, %own.one], [%owner, %chosen]
  %chunk = phi i64 [0, %own.one], [%index, %chosen]
  %known = phi i64 [1, %own.one], [%k, %chosen]
  store i64 %known, ptr %asked.at, align 8
{_get("even", "quotient", "rest")}\
  %before = mul i64 %whose.part, %quotient
  %extra = call i64 @llvm.umin.i64(i64 %whose.part, i64 %rest)
  %start = add i64 %before, %extra
  %longer = icmp ult i64 %whose.part, %rest
  %bonus = zext i1 %longer to i64
  %part = add i64 %quotient, %bonus
  %next = add i64 %chunk, 1
  %from = call i64 @nw_place(i64 %part, i64 %per, i64 %even, i64 %chunk)
  %to = call i64 @nw_place(i64 %part, i64 %per, i64 %even, i64 %next)
  %begin = add i64 %start, %from
  %end = add i64 %start, %to
  %half = insertvalue {{i64, i64}} poison, i64 %begin, 0
  %tasks = insertvalue {{i64, i64}} %half, i64 %end, 1
  ret {{i64, i64}} %tasks
none:
  ret {{i64, i64}} {{i64 -1, i64 -1}}
}}
"""

# ``done`` reaches what somebody sleeps for, the end of a round, only with a chunk of this or an
# earlier round: whoever is not at the end of its own round need not look. The one who ends the
# round knows that nothing of it is left to claim.
_FINISH_IR = f"""
define internal void @nw_finish(ptr %ticket) nounwind {{
entry:
{_get("team", "end")}\
  %before = atomicrmw add ptr %team, i64 1 seq_cst
  %done = add i64 %before, 1
  %last = icmp uge i64 %done, %end
  br i1 %last, label %over, label %return
over:
{_get("tid", "nthreads")}{_at("asked")}\
  store i64 %nthreads, ptr %asked.at, align 8
  %last.at = getelementptr i8, ptr %team, i64 {_LAST}
  store atomic i64 %tid, ptr %last.at monotonic, align 8
  call void @nw_wake(ptr %team, i64 %done)
  br label %return
return:
  ret void
}}
"""

_ARRIVE_IR = f"""
define internal void @nw_arrive(ptr %ticket) nounwind {{
entry:
  %alone = icmp eq ptr %ticket, null
  br i1 %alone, label %return, label %who
who:
{_get("left")}\
  %is.left = icmp ne i64 %left, 0
  br i1 %is.left, label %return, label %wait
wait:
{_get("team", "tid", "end")}\
  %spin.at = getelementptr i8, ptr %team, i64 {TEAM_SPIN}
  %spin = load i64, ptr %spin.at, align 8
  %slept = call i64 @nw_wait(ptr %team, i64 %end, i64 %spin)
  %caller = icmp eq i64 %tid, 0
  br i1 %caller, label %judge, label %helper
helper:
  %awake = icmp eq i64 %slept, 0
  br i1 %awake, label %return, label %rested
rested:
{_at("turn")}\
  %fresh = call i64 @llvm.readcyclecounter()
  store i64 %fresh, ptr %turn.at, align 8
  br label %return
judge:
{_get("since")}\
  %now = call i64 @llvm.readcyclecounter()
  store i64 %now, ptr %since.at, align 8
  %elapsed = sub i64 %now, %since
  %worked = sub i64 %elapsed, %slept
  %patience.at = getelementptr i8, ptr %team, i64 {TEAM_PATIENCE}
  %patience = load i64, ptr %patience.at, align 8
  %limit = add i64 %worked, %patience
  %stalled = icmp ugt i64 %slept, %limit
  br i1 %stalled, label %whose, label %return
whose:
  %last.at = getelementptr i8, ptr %team, i64 {_LAST}
  %last = load atomic i64, ptr %last.at monotonic, align 8
  %at = shl i64 %last, 6
  %lines = getelementptr i8, ptr %team, i64 {TEAM_LINES}
  %line = getelementptr i8, ptr %lines, i64 %at
  %began.at = getelementptr i8, ptr %line, i64 {_SINCE}
  %factor.at = getelementptr i8, ptr %line, i64 {_FACTOR}
  %began = load i64, ptr %began.at, align 8
  %factor = load i64, ptr %factor.at, align 8
  %most = mul i64 %patience, {LONGEST_WAIT}
  %cost = call i64 @llvm.umin.i64(i64 %slept, i64 %most)
  %asleep = sub i64 %now, %slept
  %took.part = sub i64 %asleep, %began
  %pays = icmp sge i64 %took.part, %cost
  br i1 %pays, label %keep, label %suspend
keep:
  store i64 %now, ptr %began.at, align 8
  store i64 1, ptr %factor.at, align 8
  br label %return
suspend:
  %twice = shl i64 %factor, 1
  %times = call i64 @llvm.umin.i64(i64 %twice, i64 {LONGEST_SUSPENSION})
  %time = mul i64 %cost, %times
  %until = add i64 %now, %time
  %until.at = getelementptr i8, ptr %line, i64 {SUSPENDED}
  store i64 %until, ptr %began.at, align 8
  store i64 %times, ptr %factor.at, align 8
  store atomic i64 %until, ptr %until.at monotonic, align 8
  br label %return
return:
  ret void
}}

define internal void @nw_leave(ptr %ticket) nounwind {{
entry:
  %alone = icmp eq ptr %ticket, null
  br i1 %alone, label %return, label %who
who:
{_get("tid")}\
  %caller = icmp eq i64 %tid, 0
  br i1 %caller, label %wait, label %return
wait:
  call void @nw_arrive(ptr %ticket)
  br label %return
return:
  ret void
}}
"""

# A thread that comes late may miss the reason to stop, which the next job takes back. So the rounds
# given up must look over: their numbers are skipped, in all words and in ``done``.
_STOP_IR = f"""
define internal void @nw_stop(ptr %ticket, i64 %rounds) nounwind {{
entry:
  %alone = icmp eq ptr %ticket, null
  br i1 %alone, label %return, label %who
who:
{_get("tid")}\
  %caller = icmp eq i64 %tid, 0
  br i1 %caller, label %skip, label %return
skip:
{_get("team", "nthreads", "end")}\
  %most = mul i64 %nthreads, {MOST_CHUNKS}
  %chunks = mul i64 %rounds, %most
  %skipped = add i64 %chunks, 1
  %next = add i64 %end, %skipped
  %words = getelementptr i8, ptr %team, i64 {TEAM_LINES}
  %over = shl i64 %next, 8
  br label %word
word:
  %k = phi i64 [0, %skip], [%k.next, %word]
  %at = shl i64 %k, 6
  %place = getelementptr i8, ptr %words, i64 %at
  %was = atomicrmw umax ptr %place, i64 %over seq_cst
  %k.next = add i64 %k, 1
  %more = icmp ult i64 %k.next, %nthreads
  br i1 %more, label %word, label %advance
advance:
  store i64 %next, ptr %end.at, align 8
  %before = atomicrmw add ptr %team, i64 %skipped seq_cst
  call void @nw_wake(ptr %team, i64 %next)
  br label %return
return:
  ret void
}}
"""

_SHARING_IR = CHUNKS_IR + _ROUND_IR + _CLAIM_IR + _FINISH_IR + _ARRIVE_IR + _STOP_IR

SHARING_IR = sharing_ir(host_triple())
"""`sharing_ir` for this machine; its `declare` lines are in SHARING_DECLARATIONS, because LLVM does
not accept two of the same in a module."""

SHARING_DECLARATIONS = declarations(host_triple())
