//! Shares of the line as users write them: `1,3`, one weight a transmit queue from the first on.

use std::fmt;
use std::str::FromStr;

use nic_model::scheduler::Weights;

/// How transmit queues share the line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightsSpec(pub Weights);

/// The text is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} are no weights of transmit queues: use equal, or one number from 1 to 100 a queue from the first on, as in 1,3; those left out are 1"
)]
pub struct BadWeights(String);

impl FromStr for WeightsSpec {
    type Err = BadWeights;
    fn from_str(text: &str) -> Result<Self, BadWeights> {
        if text == "equal" {
            return Ok(WeightsSpec::default());
        }
        let weights: Result<Vec<u8>, _> = text.split(',').map(str::parse).collect();
        let weights = weights.ok().and_then(|weights| Weights::new(&weights));
        let weights = weights.ok_or_else(|| BadWeights(text.to_owned()))?;
        Ok(WeightsSpec(weights))
    }
}

impl WeightsSpec {
    /// Why a card with `queues` transmit queues cannot have these, if it cannot.
    #[must_use]
    pub fn unfit(&self, queues: u16) -> Option<String> {
        let said = self.0.said().len();
        (said > queues.into()).then(|| {
            format!("these are {said} weights, and there are {queues} transmit queues: give no more than that")
        })
    }
}

impl fmt::Display for WeightsSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.said().is_empty() {
            return f.write_str("equal");
        }
        let weights: Vec<_> = self.0.said().iter().map(u8::to_string).collect();
        f.write_str(&weights.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_and_shown() {
        for (text, shown) in [
            ("equal", "equal"),
            ("1,1", "1,1"),
            ("1,3", "1,3"),
            ("100,1,2,1", "100,1,2,1"),
        ] {
            let spec: WeightsSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), shown);
            assert_eq!(spec.to_string().parse::<WeightsSpec>().unwrap(), spec);
        }
        let three: WeightsSpec = "1,1,1".parse().unwrap();
        assert!(three.unfit(3).is_none() && WeightsSpec::default().unfit(1).is_none());
        let reason = three.unfit(2).unwrap();
        assert!(reason.contains("3 weights, and there are 2"), "{reason}");
        let many = ["1"; 33].join(",");
        for wrong in ["", "0", "1,101", "1,,2", "-1", "x", &many] {
            let error = wrong.parse::<WeightsSpec>().unwrap_err().to_string();
            assert!(error.contains("1 to 100"), "{wrong}: {error}");
        }
    }
}
