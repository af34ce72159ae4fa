"""The SQL of `fleet`: from the lines of many packs to a row for each answer, machine and model."""

LINE_COLUMNS = {
    "type": "VARCHAR",
    "run": "BIGINT",
    "seq": "BIGINT",
    "utc": "VARCHAR",
    # run_start
    "run_id": "VARCHAR",
    "edgemed_version": "VARCHAR",
    "arms": "STRUCT(label VARCHAR, model_name VARCHAR, model_sha256 VARCHAR, adapter_sha256 VARCHAR)[]",
    "first_words_limit_seconds": "DOUBLE",
    "full_answer_limit_seconds": "DOUBLE",
    # machine
    "machine_id": "VARCHAR",
    "cpu_model": "VARCHAR",
    "llama_cpp_build": "VARCHAR",
    "power_source": "VARCHAR",
    "governor": "VARCHAR",
    # sample
    "suite": "VARCHAR",
    "item_id": "VARCHAR",
    "arm": "BIGINT",
    "warm_up": "BOOLEAN",
    "condition": "VARCHAR",
    "stop_reason": "VARCHAR",
    "forced_length": "BOOLEAN",
    "threads": "BIGINT",
    "times": "STRUCT(first_text_ns BIGINT, token_ns BIGINT[], end_ns BIGINT)",
    "validity": "STRUCT(verdict VARCHAR, reasons VARCHAR[])",
}
"""What is read of a line, by the names of `edgemed.records`; all else is passed over."""

LINES = """
CREATE TABLE lines AS
SELECT * EXCLUDE (times, validity, filename, run),
    -- A pack holds several runs; the first has no number.
    filename || chr(31) || coalesce(run, 0) AS file,
    times.first_text_ns / 1e9 AS first_text_seconds,
    times.end_ns / 1e9 AS end_seconds,
    len(times.token_ns) AS timed_tokens,
    list_sum(times.token_ns) / 1e9 AS token_seconds,
    validity.verdict AS verdict,
    coalesce(stop_reason = 'engine_died' OR list_contains(validity.reasons, 'engine_died'), false) AS died
FROM read_json($paths, format = 'newline_delimited', columns = $columns, filename = true,
    ignore_errors = true)
-- A line that is no record has no type.
WHERE type IS NULL OR type IN ('run_start', 'machine', 'sample')
"""

RUNS = """
CREATE TABLE runs AS
WITH machines AS (
    SELECT file, arg_min(machine_id, seq) AS machine_id, arg_min(cpu_model, seq) AS cpu_model,
        arg_min(coalesce(llama_cpp_build, ''), seq) AS llama_cpp_build,
        arg_min(coalesce(power_source, ''), seq) AS power_source,
        arg_min(coalesce(governor, ''), seq) AS governor
    FROM lines WHERE type = 'machine' GROUP BY file
)
SELECT file, run_id, utc, TRY_CAST(left(utc, 10) AS DATE) AS day, edgemed_version, arms,
    coalesce(first_words_limit_seconds, 8.0) AS first_words_limit_seconds,
    coalesce(full_answer_limit_seconds, 60.0) AS full_answer_limit_seconds,
    machines.* EXCLUDE (file)
FROM lines JOIN machines USING (file) WHERE type = 'run_start'
-- A stick that was copied twice must not count twice.
QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY file) = 1
"""

ANSWERS = """
CREATE TABLE answers AS
SELECT runs.file, runs.machine_id, runs.arms[lines.arm + 1].label AS label,
    runs.arms[lines.arm + 1].model_name AS model_name, runs.arms[lines.arm + 1].model_sha256 AS model_sha256,
    coalesce(runs.arms[lines.arm + 1].adapter_sha256, '') AS adapter_sha256,
    lines.seq, lines.item_id, lines.threads, coalesce(lines.condition, '') AS condition,
    lines.verdict, lines.died, lines.first_text_seconds, lines.end_seconds, lines.timed_tokens,
    lines.token_seconds,
    lines.suite = 'latency' AND NOT coalesce(lines.forced_length, false)
        AND NOT regexp_matches(coalesce(lines.condition, ''), '(^|\\s)(busy|cold|no_prefix|forced)(:|\\s|$)')
        AS as_used,
    lines.suite = 'latency'
        AND NOT regexp_matches(coalesce(lines.condition, ''), '(^|\\s)(busy|cold|no_prefix)(:|\\s|$)')
        AS undisturbed
FROM lines JOIN runs USING (file)
WHERE lines.type = 'sample' AND NOT coalesce(lines.warm_up, false)
"""

MACHINES = """
WITH taken AS (
    SELECT file, machine_id, model_name, label, model_sha256, adapter_sha256,
        count(*) AS samples, count(*) FILTER (verdict = 'invalid') AS invalid
    FROM answers GROUP BY ALL
),
firsts AS (
    -- One answer for each question, its first valid one; one that the engine's death ended counts too.
    SELECT * FROM answers WHERE as_used AND (verdict <> 'invalid' OR died)
    QUALIFY row_number() OVER (PARTITION BY file, label, item_id ORDER BY seq) = 1
),
late AS (
    SELECT firsts.file, label, count(*) AS asked,
        count(*) FILTER (died OR first_text_seconds IS NULL
            OR first_text_seconds > coalesce($first_words, first_words_limit_seconds)) AS late_first,
        count(*) FILTER (died OR end_seconds > coalesce($full_answer, full_answer_limit_seconds)) AS late_full
    FROM firsts JOIN runs USING (file) GROUP BY firsts.file, label
),
speeds AS (
    SELECT file, label, sum(timed_tokens) / nullif(sum(token_seconds), 0) AS rate
    FROM answers WHERE undisturbed AND verdict <> 'invalid' AND token_seconds > 0 GROUP BY file, label
)
SELECT machine_id, cpu_model, model_name, taken.label, model_sha256, taken.file, utc,
    count(*) OVER same AS runs, samples, invalid,
    coalesce(asked, 0), coalesce(late_first, 0), coalesce(late_full, 0), rate
FROM taken JOIN runs USING (file, machine_id)
LEFT JOIN late ON late.file = taken.file AND late.label = taken.label
LEFT JOIN speeds ON speeds.file = taken.file AND speeds.label = taken.label
WINDOW same AS (PARTITION BY machine_id, model_sha256, adapter_sha256)
QUALIFY row_number() OVER (
    PARTITION BY machine_id, model_sha256, adapter_sha256 ORDER BY day DESC NULLS LAST, utc DESC, taken.file
) = 1
"""

_SETTINGS = {
    "power source": "power_source",
    "processor's power plan": "governor",
    "threads": "threads",
    "edgemed": "edgemed_version",
    "llama.cpp": "llama_cpp_build",
}


def _values(column: str, side: str) -> str:
    each = f"nullif(CAST({column} AS VARCHAR), '')"
    return f"coalesce(array_to_string(list_sort(list(DISTINCT {each}) FILTER ({side})), ', '), '?')"


def _changes() -> str:
    """Return SQL for a list of sentences, one for each setting that is not the same on both sides."""
    sentences = []
    for name, column in _SETTINGS.items():
        before, after = _values(column, "day < $since"), _values(column, "day >= $since")
        name = name.replace("'", "''")
        sentences.append(f"CASE WHEN {before} <> {after} THEN '{name}: ' || {before} || ' → ' || {after} END")
    return f"list_filter([{', '.join(sentences)}], lambda changed: changed IS NOT NULL)"


DRIFT = f"""
WITH paired AS (
    SELECT machine_id, model_sha256, adapter_sha256, item_id, condition, any_value(model_name) AS model_name,
        any_value(label) AS label,
        sum(timed_tokens) FILTER (day < $since) / sum(token_seconds) FILTER (day < $since) AS before,
        sum(timed_tokens) FILTER (day >= $since) / sum(token_seconds) FILTER (day >= $since) AS later
    FROM answers JOIN runs USING (file, machine_id)
    WHERE undisturbed AND verdict <> 'invalid' AND token_seconds > 0
    GROUP BY machine_id, model_sha256, adapter_sha256, item_id, condition
    HAVING before > 0 AND later > 0
),
items AS (
    -- Several conditions of one question are not independent: they make one value.
    SELECT machine_id, model_sha256, adapter_sha256, item_id, any_value(model_name) AS model_name,
        any_value(label) AS label, avg(before) AS before, avg(later) AS later,
        avg(ln(later / before)) AS log_ratio
    FROM paired GROUP BY machine_id, model_sha256, adapter_sha256, item_id
),
settings AS (
    SELECT machine_id, model_sha256, adapter_sha256,
        {_changes()} AS changed
    FROM (SELECT DISTINCT file, machine_id, model_sha256, adapter_sha256, threads FROM answers)
    JOIN runs USING (file, machine_id) WHERE day IS NOT NULL GROUP BY ALL
)
SELECT machine_id, any_value(model_name), any_value(label), median(before), median(later), count(*),
    avg(log_ratio), stddev_samp(log_ratio), any_value(changed)
FROM items JOIN settings USING (machine_id, model_sha256, adapter_sha256)
GROUP BY machine_id, model_sha256, adapter_sha256
"""
