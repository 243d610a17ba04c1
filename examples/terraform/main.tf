# Publishes a request and waits for the end of its run; terraform apply fails if the run fails.
# It needs no provider, but `guestflow` on the PATH, and NATS_URL.
terraform {
  required_version = ">= 1.4"
}

variable "vcenter" {
  type = string
}

variable "vm" {
  description = "Managed object ID, such as vm-42; of the vsphere provider: vsphere_virtual_machine.NAME.moid."
  type        = string
}

variable "attempt" {
  description = "A failed run is not repeated with the same id: increase this number to try again without another change."
  type        = number
  default     = 1
}

variable "host_name" {
  type = string
}

variable "address" {
  type = string
}

locals {
  request = jsonencode({
    vm    = var.vm
    guest = { credentials = { secretRef = "linux-root" } }
    customize = { spec = {
      _typeName = "CustomizationSpec"
      identity = { _typeName = "CustomizationLinuxPrep", domain = "example.test"
        hostName = { _typeName = "CustomizationFixedName", name = var.host_name }
      }
      globalIPSettings = { _typeName = "CustomizationGlobalIPSettings" }
      nicSettingMap = [{ _typeName = "CustomizationAdapterMapping", adapter = { _typeName = "CustomizationIPSettings"
        ip         = { _typeName = "CustomizationFixedIp", ipAddress = var.address }
        subnetMask = "255.255.255.0"
      } }]
    } }
    network = {}
  })
  # Applying the same request again is the same run; a changed request is a new run.
  id = "${substr(sha256(local.request), 0, 16)}-${var.attempt}"
}

resource "terraform_data" "customization" {
  triggers_replace = local.id

  provisioner "local-exec" {
    command     = "printf '%s' \"$REQUEST\" | guestflow submit - --vcenter \"$VCENTER\" --source /terraform --id \"$ID\" --wait --wait-timeout 2h --text"
    environment = { REQUEST = local.request, VCENTER = var.vcenter, ID = local.id }
  }
}
