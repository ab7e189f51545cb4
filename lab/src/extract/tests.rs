use super::*;

const WIDTH: usize = 3;

struct Planted {
    rollouts: Vec<Rollout>,
    means: Vec<[f32; WIDTH]>,
    thoughts: Vec<Option<[f32; WIDTH]>>,
    folder: tempfile::TempDir,
}

impl Planted {
    /// Default answers at `+offset`, roles at `-offset` on channel 1, a question-dependent nuisance on channel 0.
    fn new(offset: f32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut planted = Self { rollouts: vec![], means: vec![], thoughts: vec![], folder };
        planted.group(&Group::Default, |question| [question, offset, 5.0]);
        for role in ["pirate", "tree", "oracle", "wolf"] {
            planted.group(&Group::Role(role.into()), |question| [question, -offset, 5.0]);
        }
        planted
    }

    fn group(&mut self, group: &Group, mean: impl Fn(f32) -> [f32; WIDTH]) {
        for question in 0..6u8 {
            self.rollouts.push(Rollout {
                group: group.clone(),
                system: None,
                question: question.into(),
                seed: 0,
                prompt: vec![1],
                response: vec![2, 3],
                thoughts: 0,
                text: String::new(),
                log_likelihood: None,
                score: None,
                faults: Vec::new(),
            });
            self.means.push(mean(question.into()));
            self.thoughts.push(None);
        }
    }

    /// Two blocks alike.
    fn activations(&self) -> MeanActivations {
        let has: Vec<_> = self.thoughts.iter().map(Option::is_some).collect();
        let mut activations = MeanActivations::new(self.folder.path(), 2, WIDTH, &has).unwrap();
        for block in 0..2 {
            for (answer, mean) in self.means.iter().enumerate() {
                activations.put(answer, false, block, mean).unwrap();
                if let Some(mean) = &self.thoughts[answer] {
                    activations.put(answer, true, block, mean).unwrap();
                }
            }
        }
        activations
    }

    fn extract(&self, options: &ExtractOptions) -> Result<Extraction, Error> {
        extract(&self.rollouts, &self.activations(), options)
    }

    fn remove(&mut self, is_removed: impl Fn(&Rollout) -> bool) {
        let kept: Vec<_> = (0..self.rollouts.len()).filter(|&i| !is_removed(&self.rollouts[i])).collect();
        self.rollouts = kept.iter().map(|&i| self.rollouts[i].clone()).collect();
        self.means = kept.iter().map(|&i| self.means[i]).collect();
        self.thoughts = kept.iter().map(|&i| self.thoughts[i]).collect();
    }
}

fn role(name: &str) -> Group {
    Group::Role(name.into())
}

#[test]
fn a_planted_axis_is_found_with_its_sign_and_norm() {
    let found = Planted::new(2.0).extract(&ExtractOptions::default()).unwrap();
    assert_eq!((found.blocks.len(), found.held_out), (2, HeldOut::RolesAndQuestions));
    for axis in &found.blocks {
        assert_eq!(axis.axis.values(), [0.0, 1.0, 0.0]);
        assert_eq!(axis.axis.norm(), Some(4.0));
        assert_eq!(axis.held_out.auc, 1.0);
        assert_eq!((axis.peak, axis.cosine_halves), ((1, 1.0), Some(1.0)));
        assert_eq!((axis.default_mean, axis.role_means[3], axis.thoughts), (2.0, Some(-2.0), None));
        assert_eq!(axis.components, None, "the roles do not differ");
    }
    assert_eq!((found.blocks[0].cosine_next, found.blocks[1].cosine_next), (Some(1.0), None));
    assert!(found.massive.is_empty() && found.traits.is_empty());
    assert_eq!(found.best_block().block, *found.recommended.start());
    let roles: Vec<_> = found.roles.iter().map(|role| (role.name.as_str(), role.answers)).collect();
    assert_eq!(roles, [("pirate", 6), ("tree", 6), ("oracle", 6), ("wolf", 6)]);
}

#[test]
fn the_score_is_that_of_roles_that_the_axis_was_not_made_from() {
    let mut planted = Planted::new(0.0);
    // Every second role differs on channel 1, the others on channel 2, in the other direction than any default.
    for (rollout, mean) in planted.rollouts.iter().zip(&mut planted.means) {
        if [role("pirate"), role("oracle")].contains(&rollout.group) {
            mean[1] = -9.0;
        } else if rollout.group != Group::Default {
            mean[2] -= 9.0;
        }
    }
    let found = planted.extract(&ExtractOptions::default()).unwrap();
    assert_eq!((found.held_out, found.blocks[0].held_out.auc), (HeldOut::RolesAndQuestions, 0.5));
    assert_eq!(found.blocks[0].cosine_halves, Some(0.0));
    let components = found.blocks[0].components.as_ref().unwrap();
    assert!((components.variance[0] - 1.0).abs() < 1e-9 && components.cosine_first < 1e-6, "{components:?}");
    // With one role only the questions are held out.
    planted.remove(|rollout| !matches!(&rollout.group, Group::Default) && rollout.group != role("tree"));
    let found = planted.extract(&ExtractOptions::default()).unwrap();
    assert_eq!((found.held_out, found.blocks[0].held_out.auc), (HeldOut::Questions, 1.0));
    assert_eq!(found.blocks[0].cosine_halves, None);
}

#[test]
fn a_role_counts_once_however_many_answers_it_has() {
    let mut planted = Planted::new(2.0);
    for (rollout, mean) in planted.rollouts.iter().zip(&mut planted.means) {
        // Without the part that depends on the question.
        *mean = [0.0, mean[1], if rollout.group == role("wolf") { -8.0 } else { 0.0 }];
    }
    // Two answers are as much as six.
    planted.remove(|rollout| rollout.group == role("wolf") && rollout.question > 1);
    let found = planted.extract(&ExtractOptions::default()).unwrap();
    assert_eq!(found.blocks[0].axis.norm(), Some((4f32 * 4.0 + 2.0 * 2.0).sqrt()));
    // One is too few.
    planted.remove(|rollout| rollout.group == role("wolf") && rollout.question > 0);
    let found = planted.extract(&ExtractOptions::default()).unwrap();
    assert_eq!((found.roles[3].answers, found.roles[3].is_used), (1, false));
    assert_eq!((found.blocks[0].axis.norm(), found.blocks[0].role_means[3]), (Some(4.0), None));
    let error = planted.extract(&ExtractOptions { min_answers: 7, ..ExtractOptions::default() }).unwrap_err();
    assert!(matches!(error, Error::FewRoles { used: 0, roles: 4, min_answers: 7 }), "{error}");
}

#[test]
fn massive_channels_are_found_and_dropped() {
    let mut planted = Planted::new(0.02);
    for (rollout, mean) in planted.rollouts.iter().zip(&mut planted.means) {
        *mean = [if rollout.group == Group::Default { 4000.0 } else { 5000.0 }, mean[1], 0.001];
    }
    let kept = planted.extract(&ExtractOptions::default()).unwrap();
    assert_eq!((kept.massive[0].channel, kept.massive[0].blocks.len()), (0, 2));
    assert_eq!(kept.blocks[0].peak.0, 0);
    let dropped =
        planted.extract(&ExtractOptions { drop_massive: true, ..ExtractOptions::default() }).unwrap();
    assert_eq!(dropped.blocks[0].axis.values(), [0.0, 1.0, 0.0]);
    assert_eq!(dropped.massive, kept.massive);
}

#[test]
fn thoughts_are_measured_apart() {
    let mut planted = Planted::new(2.0);
    for (answer, rollout) in planted.rollouts.iter_mut().enumerate() {
        rollout.thoughts = 1;
        // Thoughts of roles lie half way towards another direction.
        let is_default = rollout.group == Group::Default;
        planted.thoughts[answer] = Some(if is_default { [0.0, 1.0, 1.0] } else { [0.0; 3] });
    }
    let found = planted.extract(&ExtractOptions::default()).unwrap();
    assert_eq!(found.blocks[0].axis.values(), [0.0, 1.0, 0.0]);
    let (cosine, separation) = found.blocks[0].thoughts.unwrap();
    assert!((cosine - 0.5f64.sqrt()).abs() < 1e-6 && separation.auc == 1.0);
}

#[test]
fn traits_are_compared_with_the_axis_and_can_be_the_axis() {
    let mut planted = Planted::new(2.0);
    planted.group(&Group::Positive("warm".into()), |question| [question, 1.0, 6.0]);
    planted.group(&Group::Negative("warm".into()), |question| [question, 0.0, 5.0]);
    let found = planted.extract(&ExtractOptions::default()).unwrap();
    assert_eq!((found.traits[0].name.as_str(), found.traits[0].answers), ("warm", (6, 6)));
    let (cosine, separation) = found.blocks[0].traits[0];
    assert!((cosine - 0.5f64.sqrt()).abs() < 1e-6 && separation.auc == 1.0);
    let of_trait = Some("warm".into());
    let found = planted.extract(&ExtractOptions { of_trait, ..ExtractOptions::default() }).unwrap();
    assert_eq!((found.blocks[0].axis.norm(), found.held_out), (Some(2f32.sqrt()), HeldOut::Questions));
    let of_trait = Some("cold".into());
    let error = planted.extract(&ExtractOptions { of_trait, ..ExtractOptions::default() }).unwrap_err();
    assert!(error.to_string().contains("\"cold\", only for [\"warm\"]"), "{error}");
}

#[test]
fn groups_that_do_not_differ_have_no_axis() {
    let error = Planted::new(0.0).extract(&ExtractOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Axis { block: 0, error: axiscap::Error::ZeroAxis }), "{error}");
    // The message holds the cause, which as a source would be printed twice.
    assert!(error.to_string().contains(&axiscap::Error::ZeroAxis.to_string()));
    assert!(std::error::Error::source(&error).is_none());
}

#[test]
fn answers_without_tokens_do_not_count_and_empty_groups_are_refused() {
    let mut planted = Planted::new(2.0);
    for rollout in planted.rollouts.iter_mut().filter(|r| r.is_default() && r.question % 2 == 1) {
        // Thoughts are no answer.
        rollout.thoughts = rollout.response.len();
    }
    let options = ExtractOptions::default();
    let error = planted.extract(&options).unwrap_err();
    assert!(matches!(error, Error::EmptyGroup { group: "default", half: "odd-numbered" }));
    let error = extract(&planted.rollouts[1..], &planted.activations(), &options).unwrap_err();
    assert!(matches!(error, Error::Count { .. }));
}
