//! Work for the GPU as plain data: dispatches and copies in order, with all their parameters beside
//! them, handed over as one command buffer.
//!
//! **Invariant:** nothing is sent before [`Context::run`]; what a command reads is what the
//! commands before it wrote.

use std::sync::Arc;

use bytemuck::Pod;
use wgpu::{BindGroupDescriptor, BindGroupEntry, BindingResource, BufferBinding, BufferUsages};

use super::context::{Context, Slice};
use super::pipeline::{Kernel, Pipeline};
use super::word;
use crate::Result;
use crate::device::PassTimes;

/// Commands in order.
#[derive(Default)]
pub(super) struct Recording {
    commands: Vec<Command>,
    /// Parameters of all dispatches, each at a multiple of the alignment.
    params: Vec<u8>,
    /// Words of the work: tokens, spans, records.
    words: Vec<u32>,
    /// Those of them that were last shared, the oldest first.
    shared: [std::ops::Range<usize>; 3],
    /// Whether the device's clock is asked.
    pub(super) timed: bool,
}

enum Command {
    Dispatch {
        pipeline: Arc<Pipeline>,
        buffers: Vec<Slice>,
        params: u32,
        groups: [u32; 3],
    },
    Copy {
        from: Slice,
        to: Slice,
    },
    /// Says that a buffer will be read by dispatches from here on.
    Ready(wgpu::Buffer),
    /// Copies words of the work.
    Words {
        first: usize,
        to: Slice,
    },
}

/// Which clock a stretch of commands is counted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    Copies,
    Pass,
}

impl Recording {
    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    #[cfg(test)]
    pub(super) fn dispatches(&self) -> usize {
        let is_dispatch = |command: &&Command| matches!(command, Command::Dispatch { .. });
        self.commands.iter().filter(is_dispatch).count()
    }

    /// Appends words that the dispatches to come can read; returns the place of the first.
    pub(super) fn words(&mut self, words: &[u32]) -> u32 {
        let at = self.words.len();
        self.words.extend_from_slice(words);
        u32::try_from(at).expect("less than 16 GiB of parameters")
    }

    /// Appends records that the dispatches to come can read, where their kind may begin; returns
    /// the number of the first, counted in records from the first word.
    pub(super) fn records<T: Pod>(&mut self, records: &[T]) -> u32 {
        let size = size_of::<T>() / size_of::<u32>();
        self.words.resize(self.words.len().next_multiple_of(size), 0);
        let at = self.words.len() / size;
        self.words.extend_from_slice(bytemuck::cast_slice(records));
        u32::try_from(at).expect("less than 16 GiB of parameters")
    }

    /// The same, but records equal to one of the last three that were shared are not appended again:
    /// the layers of one pass have the same rows, pages and quads.
    pub(super) fn shared_records<T: Pod>(&mut self, records: &[T]) -> u32 {
        let words: &[u32] = bytemuck::cast_slice(records);
        let size = size_of::<T>() / size_of::<u32>();
        let is_known = |range: &&std::ops::Range<usize>| {
            range.start.is_multiple_of(size) && self.words[(*range).clone()] == *words
        };
        if let Some(known) = self.shared.iter().find(is_known) {
            return word(known.start / size);
        }
        let first = self.records(records);
        self.shared.rotate_left(1);
        self.shared[2] = self.words.len() - words.len()..self.words.len();
        first
    }

    /// Appends a dispatch of `groups` workgroups: `buffers` are group 0 in order, `params` the
    /// uniform of group 1.
    pub(super) fn dispatch<P: Pod>(
        &mut self,
        context: &Context,
        kernel: &Kernel,
        buffers: impl IntoIterator<Item = Slice>,
        params: &P,
        groups: [u32; 3],
    ) {
        if groups.contains(&0) {
            return;
        }
        let pipeline = context.pipelines.get(kernel);
        let align = context.device.limits().min_uniform_buffer_offset_alignment as usize;
        let at = self.params.len().next_multiple_of(align);
        debug_assert_eq!(pipeline.params_bytes, size_of::<P>() as u64, "{kernel:?}");
        self.params.resize(at, 0);
        self.params.extend_from_slice(bytemuck::bytes_of(params));
        let params = u32::try_from(at).expect("less than 4 GiB of parameters");
        self.commands.push(Command::Dispatch {
            pipeline,
            buffers: buffers.into_iter().collect(),
            params,
            groups,
        });
    }

    /// Appends a copy between two buffers of the device.
    pub(super) fn copy(&mut self, from: Slice, to: Slice) {
        debug_assert_eq!(from.len(), to.len());
        if from.len() > 0 {
            self.commands.push(Command::Copy { from, to });
        }
    }

    /// Says that dispatches will read `buffer` from here on: those to come wait for the copies so
    /// far, and for none that are appended between here and them.
    pub(super) fn ready(&mut self, buffer: &wgpu::Buffer) {
        self.commands.push(Command::Ready(buffer.clone()));
    }

    /// Appends a copy of host values to a buffer, in its place in the order.
    pub(super) fn write(&mut self, values: &[u32], to: &wgpu::Buffer, at: u64) {
        if !values.is_empty() {
            let first = self.words.len();
            self.words.extend_from_slice(values);
            let end = at + size_of_val(values) as u64;
            self.commands.push(Command::Words { first, to: Slice::of(to, at..end) });
        }
    }
}

/// What a run brought back.
pub(super) struct Finished {
    /// The bytes asked for, one after another.
    pub(super) bytes: Vec<u8>,
    pub(super) times: PassTimes,
}

/// Commands with every buffer that they need beside their own: nothing is left to be allocated.
pub(super) struct Prepared {
    recording: Recording,
    stretches: Vec<(Clock, std::ops::Range<usize>)>,
    params: wgpu::Buffer,
    words: wgpu::Buffer,
    reads: Vec<Slice>,
    /// What is read, and then the nonce.
    results: wgpu::Buffer,
    pub(super) nonce: u32,
    clock: Option<Timestamps>,
}

impl Context {
    /// Hands the commands over in one command buffer and one submit, then waits and copies `reads`
    /// back.
    pub(super) fn run(&self, recording: Recording, reads: &[Slice]) -> Result<Finished> {
        self.submit(self.prepare(recording, reads)?)
    }

    /// Makes every buffer that the commands need.
    ///
    /// # Errors
    /// When there is no memory left; nothing was handed over.
    pub(super) fn prepare(&self, mut recording: Recording, reads: &[Slice]) -> Result<Prepared> {
        self.check()?;
        let nonce = self.nonce();
        recording.words.push(nonce);
        let upload = |label: &str, bytes: &[u8], usage| {
            let buffer = self.buffer(label, bytes.len() as u64, usage | BufferUsages::COPY_DST)?;
            self.write(&buffer, 0, bytes)?;
            Ok::<_, crate::Error>(buffer)
        };
        let params = upload("parameters", &recording.params, BufferUsages::UNIFORM)?;
        let words = bytemuck::cast_slice(&recording.words);
        let words = upload("words", words, BufferUsages::STORAGE | BufferUsages::COPY_SRC)?;
        let bytes = reads.iter().map(Slice::len).sum::<u64>() + 4;
        let results =
            self.buffer("results", bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
        let stretches = stretches(&recording.commands);
        let clock = if recording.timed { self.clock(stretches.len())? } else { None };
        Ok(Prepared {
            recording,
            stretches,
            params,
            words,
            reads: reads.to_vec(),
            results,
            nonce,
            clock,
        })
    }

    /// Hands prepared commands over in one command buffer and one submit, waits, and brings back
    /// what is to be read.
    ///
    /// # Errors
    /// When the device failed. Some drivers call work done that was given up; so the last command
    /// copies a number that no other submit has, and work that does not bring it back was not done.
    pub(super) fn submit(&self, prepared: Prepared) -> Result<Finished> {
        if self.fails_now() {
            self.device.destroy();
        }
        let Prepared { reads, results, clock, .. } = &prepared;
        let mut encoder =
            self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
        self.encode(&mut encoder, &prepared);
        let mut at = 0;
        let nonce = Slice::of(
            &prepared.words,
            4 * (prepared.recording.words.len() as u64 - 1)..prepared.words.size(),
        );
        for Slice { buffer, bytes } in reads.iter().chain([&nonce]) {
            encoder.copy_buffer_to_buffer(
                buffer,
                bytes.start,
                results,
                at,
                bytes.end - bytes.start,
            );
            at += bytes.end - bytes.start;
        }
        if let Some(clock) = clock {
            clock.resolve(&mut encoder);
        }
        self.queue.submit([encoder.finish()]);
        let (sender, receiver) = std::sync::mpsc::channel();
        let mapped: Vec<_> =
            [results].into_iter().chain(clock.as_ref().map(|clock| &clock.staging)).collect();
        for buffer in &mapped {
            let sender = sender.clone();
            buffer.map_async(wgpu::MapMode::Read, .., move |result| drop(sender.send(result)));
        }
        drop(sender);
        self.wait()?;
        for _ in &mapped {
            // Another thread that waits may be the one that gets it.
            receiver
                .recv()
                .map_err(|error| self.fault(error))?
                .map_err(|error| self.fault(error))?;
        }
        let view = |buffer: &wgpu::Buffer| {
            let view = buffer.get_mapped_range(..).map_err(|error| self.fault(error))?;
            Ok::<Vec<u8>, crate::Error>(view.to_vec())
        };
        let mut bytes = view(results)?;
        if bytes.split_off(bytes.len() - 4) != prepared.nonce.to_ne_bytes() {
            return Err(self.fault("work that was handed over was not done"));
        }
        let times = match clock {
            Some(clock) => clock.times(
                &prepared.stretches,
                &view(&clock.staging)?,
                self.queue.get_timestamp_period(),
            ),
            None => PassTimes::default(),
        };
        Ok(Finished { bytes, times })
    }

    fn encode(&self, encoder: &mut wgpu::CommandEncoder, prepared: &Prepared) {
        let Prepared { recording, stretches, params, words, clock, .. } = prepared;
        let clock = clock.as_ref();
        for (index, (kind, range)) in stretches.iter().enumerate() {
            match kind {
                Clock::Copies => {
                    if let Some(clock) = clock {
                        clock.mark(encoder, 2 * index);
                    }
                    for command in &recording.commands[range.clone()] {
                        let (from, to) = match command {
                            Command::Copy { from, to } => (from.clone(), to),
                            Command::Words { first, to } => {
                                let start = 4 * *first as u64;
                                (Slice::of(words, start..start + to.len()), to)
                            }
                            Command::Ready(buffer) => {
                                let state = wgpu::BufferUses::STORAGE_READ_ONLY;
                                let ready = wgpu::BufferTransition { buffer, state };
                                encoder.transition_resources(
                                    std::iter::once(ready),
                                    std::iter::empty(),
                                );
                                continue;
                            }
                            Command::Dispatch { .. } => unreachable!("stretches are of one kind"),
                        };
                        encoder.copy_buffer_to_buffer(
                            &from.buffer,
                            from.bytes.start,
                            &to.buffer,
                            to.bytes.start,
                            to.len(),
                        );
                    }
                    if let Some(clock) = clock {
                        clock.mark(encoder, 2 * index + 1);
                    }
                }
                Clock::Pass => {
                    let descriptor = wgpu::ComputePassDescriptor {
                        label: None,
                        timestamp_writes: clock.map(|clock| clock.around(2 * index)),
                    };
                    let mut pass = encoder.begin_compute_pass(&descriptor);
                    for command in &recording.commands[range.clone()] {
                        let Command::Dispatch { pipeline, buffers, params: offset, groups } =
                            command
                        else {
                            unreachable!("stretches are of one kind")
                        };
                        let [buffers, work] = self.bind(pipeline, buffers, params, words);
                        pass.set_pipeline(&pipeline.compute);
                        pass.set_bind_group(0, &buffers, &[]);
                        pass.set_bind_group(1, &work, &[*offset]);
                        pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
                    }
                }
            }
        }
    }

    fn bind(
        &self,
        pipeline: &Pipeline,
        buffers: &[Slice],
        params: &wgpu::Buffer,
        words: &wgpu::Buffer,
    ) -> [wgpu::BindGroup; 2] {
        let resource = |buffer, offset, size| {
            BindingResource::Buffer(BufferBinding {
                buffer,
                offset,
                size: std::num::NonZeroU64::new(size),
            })
        };
        let entry = |(binding, resource)| BindGroupEntry { binding, resource };
        let buffers =
            buffers.iter().map(|slice| resource(&slice.buffer, slice.bytes.start, slice.len()));
        let buffers: Vec<_> = (0..).zip(buffers).map(entry).collect();
        let work = [resource(params, 0, pipeline.params_bytes), resource(words, 0, words.size())];
        let work: Vec<_> =
            (0..).zip(work).take(1 + usize::from(pipeline.reads_words)).map(entry).collect();
        [(&pipeline.buffers, &buffers), (&pipeline.work, &work)].map(|(layout, entries)| {
            self.device.create_bind_group(&BindGroupDescriptor { label: None, layout, entries })
        })
    }

    /// A clock for so many stretches, if the device has one.
    fn clock(&self, stretches: usize) -> Result<Option<Timestamps>> {
        let needed =
            wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
        let count = word(2 * stretches);
        if !self.device.features().contains(needed)
            || count == 0
            || count > wgpu::QUERY_SET_MAX_QUERIES
        {
            return Ok(None);
        }
        let descriptor =
            wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count };
        let queries = self.device.create_query_set(&descriptor);
        let bytes = u64::from(count) * 8;
        let ticks =
            self.buffer("ticks", bytes, BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC)?;
        let staging =
            self.buffer("ticks read", bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
        Ok(Some(Timestamps { queries, count, ticks, staging }))
    }
}

/// The commands in stretches that are all copies or all dispatches.
fn stretches(commands: &[Command]) -> Vec<(Clock, std::ops::Range<usize>)> {
    let mut stretches: Vec<(Clock, std::ops::Range<usize>)> = Vec::new();
    for (index, command) in commands.iter().enumerate() {
        let clock =
            if matches!(command, Command::Dispatch { .. }) { Clock::Pass } else { Clock::Copies };
        match stretches.last_mut() {
            Some((last, range)) if *last == clock => range.end = index + 1,
            _ => stretches.push((clock, index..index + 1)),
        }
    }
    stretches
}

/// Ticks of the device's clock before and after every stretch.
struct Timestamps {
    queries: wgpu::QuerySet,
    count: u32,
    ticks: wgpu::Buffer,
    staging: wgpu::Buffer,
}

impl Timestamps {
    fn mark(&self, encoder: &mut wgpu::CommandEncoder, index: usize) {
        encoder.write_timestamp(&self.queries, word(index));
    }

    fn around(&self, index: usize) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(word(index)),
            end_of_pass_write_index: Some(word(index + 1)),
        }
    }

    fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.queries, 0..self.count, &self.ticks, 0);
        encoder.copy_buffer_to_buffer(&self.ticks, 0, &self.staging, 0, self.ticks.size());
    }

    fn times(
        &self,
        stretches: &[(Clock, std::ops::Range<usize>)],
        bytes: &[u8],
        period_ns: f32,
    ) -> PassTimes {
        let ticks: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes")))
            .collect();
        let sum = |wanted: Clock| {
            let of_kind = stretches
                .iter()
                .zip(ticks.chunks_exact(2))
                .filter(|((kind, _), _)| *kind == wanted);
            let ticks: u64 = of_kind.map(|(_, pair)| pair[1].saturating_sub(pair[0])).sum();
            ticks as f64 * f64::from(period_ns) / 1e6
        };
        PassTimes { upload_ms: Some(sum(Clock::Copies)), pass_ms: Some(sum(Clock::Pass)) }
    }
}
