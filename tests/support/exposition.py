"""What a scrape of /metrics shows."""

from dataclasses import dataclass

import httpx2
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True)
class Samples:
    """One scrape: its text, and the value of each sample."""

    text: str
    values: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def get(self, name: str, **labels: str) -> float | None:
        """Return the value of the sample with exactly these labels."""
        return self.values.get((name, frozenset(labels.items())))


async def read_samples(client: httpx2.AsyncClient) -> Samples:
    """Scrape once."""
    text = (await client.get("/metrics")).text
    values = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return Samples(text, values)
