//! From the vectors and bounds of a file to a cap file.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use crate::axis::Axis;
use crate::cap::{BlockCap, Bound, Cap, CapSet};
use crate::error::{Error, MODEL};
use crate::file::{CapFile, FileError, Result, axis_problem, invalid};
use crate::import::capping_config::{CappingConfig, Experiment, Setting, is_named_role_ward};
use crate::import::evidence::Evidence;
use crate::import::orient::{self, Basis, Convention, Orientation, Placed};
use crate::import::problem::{quoted, unsupported};
use crate::import::request::{Imported, PointsTo, Request, Target};
use crate::import::source::{Contents, Format, Notes, Source};
use crate::import::tensor::{Budget, Row};
use crate::import::vectors::{Rows, Vectors};
use crate::import::warning::{Numbers, Warning};

/// What a positive projection means in every file that is oriented.
const MORE_ASSISTANT: &str = "more Assistant";
/// The name of caps on an oriented axis, as in files by `axiscap extract`.
const ASSISTANT: &str = "assistant";

impl Source {
    /// Makes a cap file of the file's content: caps of an experiment, or axes without bounds.
    ///
    /// The axes are unit vectors with their former norms, and point to the Assistant. An upper bound on a
    /// vector that points to roles becomes a floor on the axis: the operation is the same.
    ///
    /// # Errors
    /// [`FileError`] for a request that the file cannot serve, vectors of another width or for other blocks
    /// than the model's, vectors with NaN, infinities or zeros only, and an orientation that is not decided.
    pub fn caps(&self, target: &Target, request: &Request<'_>) -> Result<Imported> {
        let caps = match &self.contents {
            Contents::Config(config) => self.of_config(config, target, request),
            Contents::Vectors { vectors, notes } => self.of_vectors(vectors, notes, target, request),
        };
        caps.map_err(|error| self.in_file(error))
    }

    fn of_config(&self, config: &CappingConfig, target: &Target, request: &Request<'_>) -> Result<Imported> {
        // Every vector counts: an experiment may use low blocks of a deeper model.
        for vector in &config.vectors {
            check_place(vector.layer, vector.row.width, target)?;
        }
        let experiment = chosen(&config.experiments, request.experiment)?;
        let taken: Vec<_> = experiment
            .caps
            .iter()
            .filter(|cap| in_range(&request.blocks, config.vectors[cap.vector].layer))
            .collect();
        if taken.is_empty() {
            return Err(no_blocks(request, "the experiment caps others, or none"));
        }
        if taken.len() > CapFile::MAX_CAPS {
            let expected = format!("at most {} caps", CapFile::MAX_CAPS);
            return Err(unsupported("interventions", expected, taken.len().to_string(), "take fewer blocks"));
        }
        let budget = Budget::of(&self.bytes);
        let mut axes = HashMap::<Row, Axis>::new();
        let mut placed = Vec::with_capacity(taken.len());
        for cap in &taken {
            let vector = &config.vectors[cap.vector];
            let axis = match axes.get(&vector.row) {
                Some(axis) => axis.clone(),
                None => {
                    let axis = axis(&vector.row, &self.bytes, &budget, vector.layer)?;
                    axes.entry(vector.row).or_insert(axis).clone()
                }
            };
            placed.push(Placed { block: vector.layer, axis, name: Some(vector.name.clone()) });
        }
        let convention = taken.iter().all(|cap| is_named_role_ward(&config.vectors[cap.vector].name)).then_some(
            Convention {
                points_to: PointsTo::Roles,
                name: "the released files name their vectors contrast_role_..._default..., role minus default",
            },
        );
        let orientation = orient::decide(&placed, convention, request)?;
        let first = &config.vectors[taken[0].vector].name;
        orient::refuse_unknown(&orientation, &quoted(first))?;
        let bounds = taken.iter().map(|cap| {
            Bound::ceiling(cap.cap as f32).map_err(|error| {
                invalid("cap", "a number that f32 holds", cap.cap.to_string(), error.to_string())
            })
        });
        let bounds = bounds.collect::<Result<Vec<_>>>()?;
        let mut imported = self.assemble(&placed, &bounds, &orientation, target)?;
        let blocks = blocks(&placed);
        let setting = Setting::parse(&experiment.id);
        record_experiment(&mut imported.file, experiment, setting.as_ref(), &orientation, &placed);
        if setting
            .is_some_and(|setting| request.blocks.is_none() && !setting.layers.eq(blocks.iter().copied()))
        {
            let warning = Warning::OtherLayers { experiment: experiment.id.clone(), blocks };
            imported.warnings.push(warning);
        }
        if experiment.without_cap > 0 {
            imported.warnings.push(Warning::WithoutCap { count: experiment.without_cap });
        }
        imported.warnings.extend(fewer_layers(config, target));
        Ok(imported)
    }

    fn of_vectors(
        &self,
        vectors: &Vectors,
        notes: &Notes,
        target: &Target,
        request: &Request<'_>,
    ) -> Result<Imported> {
        if let Some(experiment) = request.experiment {
            let remedy = "leave the experiment out: all vectors of the file are taken";
            return Err(unsupported("experiment", "a capping_config.pt", quoted(experiment), remedy));
        }
        if vectors.means {
            let expected = "an axis";
            let remedy = "give it as default vector or role vector; the axis is their difference";
            return Err(unsupported("vector", expected, "mean activations of a role", remedy));
        }
        let budget = Budget::of(&self.bytes);
        let mut placed = Vec::new();
        for (block, row) in placed_rows(vectors, target, request)? {
            check_place(block, row.width, target)?;
            placed.push(Placed { block, axis: axis(&row, &self.bytes, &budget, block)?, name: None });
        }
        let convention = match self.format {
            Format::Neuronpedia => Some(Convention {
                points_to: PointsTo::Roles,
                name: "Neuronpedia negates the contrast vectors that persona.yaml names",
            }),
            Format::Torch | Format::Safetensors => Some(Convention {
                points_to: PointsTo::Assistant,
                name: "axis files hold default minus roles",
            }),
            _ => None,
        };
        let orientation = orient::decide(&placed, convention, request)?;
        let mut imported = self.assemble(&placed, &vec![Bound::NONE; placed.len()], &orientation, target)?;
        if let Some(manifest) = &notes.manifest {
            let layers: Vec<u32> =
                manifest.layers.iter().filter_map(|&layer| layer.try_into().ok()).collect();
            let origin = &mut imported.file.origin;
            origin.set("import.blank_system_prompt", manifest.blank_system_prompt);
            origin.set("import.shown_at_layers", layers).set("import.titles", manifest.titles.clone());
        }
        imported.warnings.extend(notes.warnings(&target.model.architecture));
        Ok(imported)
    }

    /// Makes the cap file of vectors, their bounds and their orientation.
    fn assemble(
        &self,
        placed: &[Placed],
        bounds: &[Bound],
        orientation: &Orientation,
        target: &Target,
    ) -> Result<Imported> {
        let oriented = orientation.basis != Basis::Unknown;
        // Caps that share an axis share its negation as well.
        let mut negated = HashMap::<*const f32, Axis>::new();
        let caps =
            placed.iter().zip(bounds).zip(&orientation.to_roles).map(|((vector, &bound), &to_roles)| {
                let axis = &vector.axis;
                let cap = if to_roles {
                    let axis = negated.entry(axis.values().as_ptr()).or_insert_with(|| axis.negated());
                    Cap::new(axis.clone(), bound.mirrored())
                } else {
                    Cap::new(axis.clone(), bound)
                };
                let cap = if oriented { cap.with_name(ASSISTANT) } else { cap };
                BlockCap { block: vector.block, cap }
            });
        let caps = CapSet::new(caps).map_err(FileError::other_model)?;
        caps.check_model(target.width, target.model.blocks).map_err(FileError::other_model)?;
        let ceilings: BTreeSet<usize> = caps
            .caps()
            .iter()
            .filter(|entry| oriented && entry.cap.bound().hi().is_finite())
            .map(|entry| entry.block)
            .collect();
        let mut file = CapFile::new(caps, target.model.clone());
        file.orientation = oriented.then(|| MORE_ASSISTANT.to_owned());
        file.origin.set("tool", tool());
        if let Some(name) = self.file_name() {
            file.origin.set("import.file", name);
        }
        let types: BTreeSet<_> = self.element_names();
        file.origin
            .set("import.format", self.format.name())
            .set("import.element_types", types.into_iter().map(str::to_owned).collect::<Vec<_>>())
            .set("import.blocks", Numbers(&blocks(placed)).to_string())
            .set("import.orientation_by", orientation.basis.text())
            .set("import.vectors_negated", orientation.to_roles.clone());
        if !orientation.cosines.is_empty() {
            let cosines: Vec<f32> = orientation.cosines.iter().map(|&cosine| cosine as f32).collect();
            file.origin.set("import.evidence_cosines", cosines);
        }
        let mut warnings = orientation.warnings.clone();
        if !ceilings.is_empty() {
            warnings.push(Warning::Ceiling { blocks: ceilings.into_iter().collect() });
        }
        Ok(Imported { file, warnings })
    }

    fn element_names(&self) -> BTreeSet<&'static str> {
        match &self.contents {
            Contents::Config(config) => {
                config.vectors.iter().map(|vector| vector.row.element.name()).collect()
            }
            Contents::Vectors { vectors, .. } => vectors.each().map(|(_, row)| row.element.name()).collect(),
        }
    }
}

impl Evidence {
    /// Makes axes without bounds of the evidence itself: per block the default vector minus the mean of the
    /// role vectors, computed in f64 and rounded to f32 once.
    ///
    /// # Errors
    /// [`FileError`] for another width or number of blocks than the model's, and for vectors that are equal.
    pub fn axes(&self, target: &Target, blocks: Option<Range<usize>>) -> Result<Imported> {
        let mut caps = Vec::new();
        for block in self.blocks().filter(|&block| in_range(&blocks, block)) {
            let difference = self.difference(block).unwrap_or_default();
            check_place(block, difference.len(), target)?;
            let direction: Vec<f32> = difference.into_iter().map(|value| value as f32).collect();
            let axis = Axis::from_direction(&direction)
                .map_err(|error| axis_problem(format!("default minus roles, block {block}"), error))?;
            caps.push(BlockCap { block, cap: Cap::new(axis, Bound::NONE).with_name(ASSISTANT) });
        }
        let taken: Vec<usize> = caps.iter().map(|entry| entry.block).collect();
        let caps = CapSet::new(caps).map_err(|error| match error {
            Error::EmptySet => {
                no_blocks(&Request { blocks, ..Request::default() }, "the vectors have others")
            }
            other => FileError::other_model(other),
        })?;
        check_count(self.blocks().count(), target)?;
        let mut file = CapFile::new(caps, target.model.clone());
        file.orientation = Some(MORE_ASSISTANT.into());
        file.origin.set("tool", tool());
        if let Some(name) = &self.file {
            file.origin.set("import.file", name.as_str());
        }
        file.origin
            .set("import.format", "default vector minus the mean of role vectors")
            .set("import.roles", self.roles() as u64)
            .set("import.blocks", Numbers(&taken).to_string())
            .set("import.orientation_by", "definition: default minus roles");
        Ok(Imported { file, warnings: Vec::new() })
    }
}

impl Notes {
    fn warnings(&self, architecture: &str) -> Vec<Warning> {
        let mut warnings = Vec::new();
        if let Some(file) = self.architecture.as_ref().filter(|file| *file != architecture) {
            warnings.push(Warning::OtherArchitecture { file: file.clone(), model: architecture.to_owned() });
        }
        if self.by_generator {
            warnings.push(Warning::Generator);
        }
        if self.bounds_ignored {
            warnings.push(Warning::BoundsIgnored);
        }
        warnings
    }
}

fn tool() -> String {
    format!("axiscap {}", env!("CARGO_PKG_VERSION"))
}

fn in_range(range: &Option<Range<usize>>, block: usize) -> bool {
    range.as_ref().is_none_or(|range| range.contains(&block))
}

fn blocks(placed: &[Placed]) -> Vec<usize> {
    placed.iter().map(|vector| vector.block).collect::<BTreeSet<_>>().into_iter().collect()
}

fn chosen<'a>(experiments: &'a [Experiment], id: Option<&str>) -> Result<&'a Experiment> {
    let count = experiments.len();
    let Some(id) = id else {
        return match experiments {
            [only] => Ok(only),
            _ => {
                let remedy = "name one of them by its id";
                Err(invalid("experiments", "an experiment to take", format!("{count} of them"), remedy))
            }
        };
    };
    let mut matching = experiments.iter().filter(|experiment| experiment.id == id);
    match (matching.next(), matching.next()) {
        (Some(only), None) => Ok(only),
        (Some(_), Some(_)) => Err(invalid(
            "experiments",
            format!("one experiment {}", quoted(id)),
            "several",
            "rename them in the file",
        )),
        (None, _) => {
            let found = format!("{count} others");
            Err(invalid(
                "experiments",
                format!("an experiment {}", quoted(id)),
                found,
                "list the file's experiments",
            ))
        }
    }
}

/// Returns the requested rows with their blocks.
fn placed_rows(vectors: &Vectors, target: &Target, request: &Request<'_>) -> Result<Vec<(usize, Row)>> {
    if vectors.stacked {
        check_count(vectors.each().count(), target)?;
    }
    let rows = match &vectors.rows {
        Rows::Single(row) => match &request.blocks {
            Some(range) if range.len() == 1 => return Ok(vec![(range.start, *row)]),
            _ => {
                let remedy = "say which block it is for, by a range of one block";
                return Err(unsupported("layers", "one vector per layer", "a single vector", remedy));
            }
        },
        Rows::Numbered(rows) => rows,
    };
    let mut placed = Vec::new();
    let mut seen = BTreeSet::new();
    for (&layer, row) in rows {
        let block = match usize::try_from(layer) {
            Ok(block) => block,
            // Negative layers count from the end of the model.
            Err(_) => i64::try_from(target.model.blocks)
                .ok()
                .and_then(|blocks| usize::try_from(blocks + layer).ok())
                .ok_or_else(|| {
                    let expected = format!("a layer of {} blocks", target.model.blocks);
                    invalid("layers", expected, layer.to_string(), "name a file for this model")
                })?,
        };
        if !seen.insert(block) {
            return Err(invalid(format!("block {block}"), "one vector", "two", "name each layer once"));
        }
        if in_range(&request.blocks, block) {
            placed.push((block, *row));
        }
    }
    if placed.is_empty() {
        return Err(no_blocks(request, "the file has others"));
    }
    placed.sort_by_key(|&(block, _)| block);
    Ok(placed)
}

fn no_blocks(request: &Request<'_>, found: &str) -> FileError {
    let expected = match &request.blocks {
        Some(range) => format!("some of {} to {}", range.start, range.end.saturating_sub(1)),
        None => "at least one".into(),
    };
    invalid("blocks", expected, found, "choose among the file's blocks")
}

/// Refuses a vector of another width, or for a block that the model does not have.
fn check_place(block: usize, width: usize, target: &Target) -> Result<()> {
    if width != target.width {
        let what = format!("the vector of block {block}");
        let error = Error::Width { what, found: width, against: MODEL, expected: target.width };
        return Err(FileError::other_model(error));
    }
    if block >= target.model.blocks {
        let found = block.to_string();
        let expected = format!("a block of the model, from 0 to {}", target.model.blocks.saturating_sub(1));
        return Err(invalid("layers", expected, found, "name a file for this model"));
    }
    Ok(())
}

/// Warns about a configuration with vectors for every layer of a model with fewer blocks.
fn fewer_layers(config: &CappingConfig, target: &Target) -> Option<Warning> {
    let layers: BTreeSet<usize> = config.vectors.iter().map(|vector| vector.layer).collect();
    let is_whole = (0..layers.len()).eq(layers.iter().copied());
    let (file, model) = (layers.len(), target.model.blocks);
    (is_whole && file < model).then_some(Warning::FewerLayers { file, model })
}

/// Refuses one vector per layer of a model with another number of blocks.
fn check_count(layers: usize, target: &Target) -> Result<()> {
    if layers == target.model.blocks {
        return Ok(());
    }
    let remedy = if layers == target.model.blocks + 1 {
        "the first may be the embedding's: drop it, so that row 0 is the output of block 0"
    } else {
        "name a file for this model"
    };
    let expected = format!("{}, the model's number of blocks", target.model.blocks);
    Err(invalid("number of layers", expected, layers.to_string(), remedy))
}

fn axis(row: &Row, bytes: &[u8], budget: &Budget, block: usize) -> Result<Axis> {
    let values = row.floats(bytes, budget)?;
    Axis::from_direction(&values).map_err(|error| axis_problem(format!("vector of layer {block}"), error))
}

/// Records what an experiment's numbers mean on the axis as it is stored.
fn record_experiment(
    file: &mut CapFile,
    experiment: &Experiment,
    setting: Option<&Setting>,
    orientation: &Orientation,
    placed: &[Placed],
) {
    let names: Vec<_> = placed.iter().filter_map(|vector| vector.name.clone()).collect();
    let all_to_roles = orientation.to_roles.iter().all(|&to_roles| to_roles);
    let side = if all_to_roles {
        "upper bounds on unit vectors that point to roles; here floors on the Assistant axis"
    } else {
        "upper bounds on the file's unit vectors"
    };
    file.origin
        .set("import.experiment", experiment.id.as_str())
        .set("import.bounds", side)
        .set("import.vector_names", names);
    let Some(Setting { layers, percentile }) = setting else { return };
    let last = layers.end - 1;
    file.origin
        .set(
            "import.experiment_layers",
            format!("{}:{}, half open: blocks {} to {last}", layers.start, layers.end, layers.start),
        )
        .set("import.percentile_on_stored_vectors", *percentile as f32);
    if all_to_roles {
        file.origin.set("import.percentile_from_role_end", (100.0 - percentile) as f32);
    }
}
