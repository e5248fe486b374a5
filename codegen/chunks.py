"""How a thread's part of a kernel's tasks is cut into the chunks that threads claim (``spmd.py``).

Equal chunks first. The last of them is halved a few times where the part has tasks enough, so that
it ends with small ones, and these are what another thread takes when its own are gone: two cores
are never equally fast, and without small chunks the slower one would be waited for.
"""

from __future__ import annotations

MAX_CUTS = 4
"""The most equal chunks per thread."""

HALVINGS = 3
"""How often the last chunk of a thread is halved in a tapered cut."""

TAPERED = 16
"""Added to the number of equal chunks: the last one is to be halved."""

MOST_CHUNKS = MAX_CUTS + HALVINGS
"""The most chunks per thread. Four bits of a word count them."""

TAPERED_TASKS = 16
"""Tasks per thread below which the last chunk is not halved: pieces would be empty."""

CHUNKS_IR = f"""
define internal {{i64, i64}} @nw_cut(i64 %tasks, i64 %nthreads, i64 %cuts) nounwind {{
  %plain = and i64 %cuts, {TAPERED - 1}
  %wanted = mul i64 %plain, %nthreads
  %few = icmp ult i64 %tasks, %wanted
  %even = select i1 %few, i64 1, i64 %plain
  %fine = mul i64 %nthreads, {TAPERED_TASKS}
  %enough = icmp uge i64 %tasks, %fine
  %asked = icmp uge i64 %cuts, {TAPERED}
  %tapers = and i1 %asked, %enough
  %halved = add i64 %even, {HALVINGS}
  %per = select i1 %tapers, i64 %halved, i64 %even
  %first = insertvalue {{i64, i64}} poison, i64 %per, 0
  %both = insertvalue {{i64, i64}} %first, i64 %even, 1
  ret {{i64, i64}} %both
}}

define internal i64 @nw_place(i64 %part, i64 %per, i64 %even, i64 %index) nounwind {{
  %scaled = mul i64 %part, %index
  %place = udiv i64 %scaled, %even
  %whole = udiv i64 %part, %even
  %behind = sub i64 %index, %even
  %halvings = add i64 %behind, 1
  %left = lshr i64 %whole, %halvings
  %later = sub i64 %part, %left
  %equal = icmp ult i64 %index, %even
  %inner = select i1 %equal, i64 %place, i64 %later
  %end = icmp uge i64 %index, %per
  %at = select i1 %end, i64 %part, i64 %inner
  ret i64 %at
}}
"""
"""``{i64, i64} @nw_cut(i64 tasks, i64 nthreads, i64 cuts)``: chunks per thread, and how many of
them are equal but for the halving of the last; ``cuts`` is the wanted number of equal ones,
with TAPERED added or not. ``i64 @nw_place(i64 part, i64 per, i64 even, i64 index)``: where chunk
``index`` begins in a part of so many tasks; that of chunk ``per`` is the end of the part."""
