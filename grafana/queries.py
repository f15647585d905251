"""SQL of the panels. Grafana fills in `$__timeFrom()`, `$__timeTo()` and the variables, quoted by `:sqlstring`."""

LATEST_PREDICTIONS = """
SELECT p.created_at AS "time", p.prediction_id::text, p.model_version AS version, p.predicted_class AS predicted,
    l.label, p.score, p.external_id
FROM (
    SELECT created_at, prediction_id, model_version, predicted_class, score, external_id FROM prediction_log
    WHERE prediction_id >= prediction_id_at($__timeFrom()) AND prediction_id < prediction_id_at($__timeTo())
        AND model_name = ${model:sqlstring} AND model_version IN (${version:sqlstring}) AND role = 'live'
    ORDER BY prediction_id DESC LIMIT 100
) p
LEFT JOIN LATERAL (SELECT label FROM prediction_label WHERE prediction_id = p.prediction_id LIMIT 1) l ON true
ORDER BY p.prediction_id DESC
"""

CONFUSION = """
SELECT label.key AS label, predicted.key AS predicted, sum(predicted.value::bigint)::bigint AS rows
FROM quality_result
CROSS JOIN LATERAL jsonb_each(confusion) AS label
CROSS JOIN LATERAL jsonb_each_text(label.value) AS predicted
WHERE model_name = ${model:sqlstring} AND model_version IN (${version:sqlstring}) AND role = 'live'
    AND window_name = ${window:sqlstring}
GROUP BY 1, 2 ORDER BY 1, 2
"""

RESULTS = """
SELECT model_version AS version, window_name AS "window", computed_at AS computed, measures->>'state' AS state,
    (measures->>'predictions')::bigint AS predictions, (measures->>'labelled')::bigint AS labelled,
    (measures->>'f1')::float8 AS "F1", (measures->>'f1_lower')::float8 AS lower,
    (measures->>'f1_upper')::float8 AS upper, (measures->>'corrected_f1')::float8 AS corrected,
    (measures->>'baseline_f1')::float8 AS baseline, (measures->>'best_threshold')::float8 AS "best threshold",
    (measures->>'best_threshold_f1')::float8 AS "F1 there", measures->>'regret_is_certain' AS "gain certain",
    (measures->>'auc')::float8 AS "AUC",
    (measures->>'brier')::float8 AS "Brier", (measures->>'ece')::float8 AS "ECE"
FROM quality_result
WHERE model_name = ${model:sqlstring} AND model_version IN (${version:sqlstring}) AND role = 'live'
ORDER BY (
    SELECT array_agg(CASE WHEN part[1] ~ '[0-9]' THEN lpad(part[1], 100, '0') ELSE part[1] END)
    FROM regexp_matches(model_version, '[0-9]+|[^0-9]+', 'g') AS part
), until - since
"""

F1_BY_THRESHOLD = """
SELECT (curve.position - 1) / 100.0::float8 AS threshold, (curve.f1 #>> '{}')::float8 AS "F1"
FROM (
    SELECT measures->'f1_by_threshold' AS f1
    FROM quality_result r JOIN model_version v ON v.name = r.model_name AND v.version = r.model_version
    WHERE model_name = ${model:sqlstring} AND model_version IN (${version:sqlstring}) AND role = 'live'
        AND window_name = ${window:sqlstring}
    ORDER BY v.loaded_at DESC LIMIT 1
) newest
CROSS JOIN LATERAL jsonb_array_elements(CASE jsonb_typeof(newest.f1) WHEN 'array' THEN newest.f1 ELSE '[]' END)
    WITH ORDINALITY AS curve (f1, position)
ORDER BY 1
"""
