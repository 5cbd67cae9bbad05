//! Families and their samples, written in a format of `prometheus-client`'s. A family without samples isn't there at all.

use std::borrow::Cow;
use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::histogram::Reading;

pub(super) type Labels<'l> = Vec<(&'static str, Cow<'l, str>)>;

/// What a family is called and what it means.
#[derive(Clone, Copy)]
pub(super) struct Family {
    /// Without the unit and without `_total`.
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) help: &'static str,
}

pub(super) struct Page<'e>(pub(super) DescriptorEncoder<'e>);

impl Page<'_> {
    pub(super) fn gauges<'l, V: EncodeGaugeValue>(
        &mut self,
        family: Family,
        rows: impl IntoIterator<Item = (Labels<'l>, V)>,
    ) -> fmt::Result {
        self.family(family, MetricType::Gauge, rows, |mut sample, value| sample.encode_gauge(&value))
    }

    pub(super) fn counters<'l, V: EncodeCounterValue>(
        &mut self,
        family: Family,
        rows: impl IntoIterator<Item = (Labels<'l>, V)>,
    ) -> fmt::Result {
        self.family(family, MetricType::Counter, rows, |mut sample, value| {
            sample.encode_counter::<NoLabelSet, V, u64>(&value, None)
        })
    }

    pub(super) fn histograms<'l>(
        &mut self,
        family: Family,
        rows: impl IntoIterator<Item = (Labels<'l>, Reading)>,
    ) -> fmt::Result {
        self.family(family, MetricType::Histogram, rows, |mut sample, reading| {
            let Reading { sum, count, buckets } = reading;
            sample.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        })
    }

    pub(super) fn info(&mut self, family: Family, labels: Labels<'_>) -> fmt::Result {
        self.family(family, MetricType::Info, [(Vec::new(), labels)], |mut sample, labels| sample.encode_info(&labels))
    }

    /// Of a closed set of words the one that holds.
    pub(super) fn one_of<'l>(
        labels: Labels<'l>,
        key: &'static str,
        word: &'l str,
        words: &[&'l str],
    ) -> Vec<(Labels<'l>, u64)> {
        let row = |it: &&'l str| {
            let mut labels = labels.clone();
            labels.push((key, Cow::Borrowed(*it)));
            (labels, u64::from(*it == word))
        };
        words.iter().map(row).collect()
    }

    fn family<'l, V>(
        &mut self,
        family: Family,
        kind: MetricType,
        rows: impl IntoIterator<Item = (Labels<'l>, V)>,
        write: impl Fn(MetricEncoder<'_>, V) -> fmt::Result,
    ) -> fmt::Result {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let unit = (!family.unit.is_empty()).then(|| Unit::Other(family.unit.to_owned()));
        let mut encoder = self.0.encode_descriptor(family.name, family.help, unit.as_ref(), kind)?;
        rows.try_for_each(|(labels, value)| write(encoder.encode_family(&labels)?, value))
    }
}
