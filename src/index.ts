/**
 * bpfimg as a library: images, their JSON, dumps as maps, and live maps, in the order of the folders. docs/library.md has
 * programs.
 *
 * @example
 * const types = typeTable();
 * const dump = await openDump('dump');
 * for (const map of dump.maps) for await (const item of items(dump, map, types)) console.log(map.mapId, item);
 * dump.close();
 */

export { plugins, typeTable } from '../plugins/index.js';
export type { Format as ArchiveFormat } from './archive/compression.js';
export {
  type ArrayType,
  Btf,
  type BtfKind,
  type BtfOptions,
  type BtfType,
  type Common as BtfTypeCommon,
  type DatasecType,
  type EnumType,
  type FloatType,
  type FuncProtoType,
  type FwdType,
  type IntType,
  type Member,
  type RefType,
  type StructType,
  type VoidType,
} from './btf/btf.js';
export { typeDefinition, typeDefinitions, typeName, typeNamed } from './btf/c.js';
export { type BtfFile, type MapDefinition, readBtfFile } from './btf/elf.js';
export { extractTypes, type WantedTypes } from './btf/extract.js';
export type { Meaning } from './btf/meaning.js';
export { SPECIAL_FIELDS, type SpecialField, type SpecialKind, specialFields } from './btf/special.js';
export {
  type CodecOptions,
  type Sink,
  type ValueCodec,
  type ValuePart,
  valueCodec,
} from './btf/values.js';
export { type CapturedMap, type CaptureOptions, capture } from './capture/capture.js';
export type { ChosenFrom, ItemChoice } from './capture/chosen.js';
export type { BatchLimits } from './capture/read.js';
export {
  type CheckedProcess,
  checkTree as checkCriu,
  type HeldObject,
  type Outcome as DumpOutcome,
  type TreeCheck,
} from './criu/check.js';
export type { CriuConfig } from './criu/config.js';
export {
  type Conversion,
  type ConvertedMap,
  convert as convertDump,
  type DumpForm,
} from './criu/convert.js';
export {
  type CriuHost,
  type HostFinding,
  type HostOptions,
  inspectCriu,
  type OurPlugin,
  type PluginFolder,
  type Stops,
} from './criu/criu-program.js';
export type { AttributeChange } from './diff/diff.js';
export { type DiffedMap, type DumpDiffOptions, diffDumps as diff, type ItemChange } from './diff/dumps.js';
export { type DocumentForms, type DocumentOptions, writeDocument } from './dump/document.js';
export { encodeDocument } from './dump/encode.js';
export type { DumpFiles } from './dump/files.js';
export { type Item, items, type RawItem, rawItems } from './dump/items.js';
export type {
  DocumentBtf,
  DocumentFile,
  DocumentItem,
  DocumentMap,
  MapAttributes,
  MapHeader,
  MapsDocument,
} from './dump/maps-document.js';
export {
  type Dump,
  type DumpBtf,
  type DumpMap,
  type Holder,
  IMAGE,
  type ImageNames,
  type Lost,
  type MapData,
  type MapFile,
  type OnBroken,
  openDump,
  openDumpImage,
  PLUGIN_IMAGE,
  type PluginDump,
  type PluginProblem,
} from './dump/model.js';
export type { KeptLine, TableLine } from './dump/plugin-table.js';
export { mapName, mapsNamed, selectMaps, wholeName } from './dump/select.js';
export { type Definitions, TypeFinder, type TypeOptions, type TypeProblem } from './dump/types.js';
export { BpfimgError, type ErrorDetails, type ErrorKind, EXIT, PointerError } from './errors.js';
export {
  type Head,
  IMAGE_KINDS,
  type ImageKind,
  type KindRow,
  kindOfMagic,
  kindOfName,
} from './image/kinds.js';
export type { FieldDisplay, MessageField } from './image/message.js';
export { type Entry, ImageReader } from './image/reader.js';
/** The messages of images, by their names in images/*.proto: `messages.BpfmapFileEntry`. */
export type * as messages from './image/schema.gen.js';
export { decodeMessage, encodeMessage, type Text } from './image/wire.js';
export { bufferInput, Cursor, type Input, openInput, streamInput } from './io/input.js';
export { MemoryOutput, type Output, openOutput } from './io/output.js';
export {
  type DecodeOptions,
  type Dialect,
  type DocumentBtfObject,
  decodeImage,
  type FormSource,
} from './json/decode.js';
export { encodeImage } from './json/encode.js';
export type { ItemForms, ItemShape, JsonForm, MapForms } from './json/forms.js';
export { JsonReader, type Origin, type Sum } from './json/reader.js';
export type { NamedTypes } from './json/types.js';
export type {
  BpfCommand,
  MapShape,
  StructField,
  StructLayout,
} from './kernel/abi.js';
export { KernelError } from './kernel/error.js';
export { type LiveMap, LiveMaps, openLive, type Program, type Selectors, type Unseen } from './kernel/live.js';
export {
  type Batch,
  type BatchCursor,
  type BatchResult,
  BpfMap,
  type MapInfo,
  type Mapping,
  type MapSpec,
  type MapState,
} from './kernel/map.js';
export type { Available } from './kernel/memory.js';
export type { Access, AnonymousMapping, MapHolder } from './kernel/proc.js';
export type { Counted, CreateRule, KnownType, SizeRange } from './kernel/rules.js';
export { type Attr, type MapResult, openSys, type Result, type Sys } from './kernel/sys.js';
export {
  type CaptureWork,
  type Carries,
  type Doing,
  type Drain,
  type Foreseen,
  FULL,
  type ImageItem,
  type IntoCounts,
  type IntoMode,
  type IntoWork,
  type ItemSink,
  type ItemSource,
  type KernelTypeFacts,
  type KeyForm,
  type KnownTypes,
  type MapFacts,
  type MappedMemory,
  type MapType,
  MapTypes,
  type Planned,
  type Plugin,
  type ProgramFacts,
  parseReport,
  type Reference,
  type ReplayWork,
  type Report,
  reportText,
  type Span,
  type Template,
  type TypeFacts,
  type Work,
} from './maptype.js';
export {
  type Loss,
  type LossReason,
  type Migration,
  type MigrationChange,
  type MigrationOptions,
  type MigrationStep,
  migration,
  type TypeRef,
  type UnusedOption,
} from './migrate/migrate.js';
export type { CpuFold } from './replay/items.js';
export type { Losses } from './replay/migrated.js';
export type { PinsOfMap } from './replay/pins.js';
export { type Collisions, type PlannedMap, type PlanOptions, planMap, planMaps, type Reshaped } from './replay/plan.js';
export { type FreshMap, type ReplayOptions, replay } from './replay/replay.js';
export { type Model, type ReshapeOptions, reshape } from './replay/reshape.js';
export type { Replaced } from './replay/swap.js';
export { encodeIntoArchive, packed as packDump } from './source/pack.js';
export {
  type DumpSource,
  type ImageSource,
  mapsOf,
  openMaps,
  openSource,
  type Source,
  type SourceHost,
  type Watcher,
} from './source/source.js';
export { type FillMap, type MergeMap, type ReadMap, type Toolkit, toolkit } from './toolkit.js';
export type { Json, JsonObject } from './value.js';
export { FINDINGS, type Finding, type FindingCode, Verifier } from './verify/verify.js';
export { version } from './version.js';
